package device

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/live/channel"
)

// maxTopic bounds the name of a topic, in bytes.
const maxTopic = 128

// ParseTopic reads "pattern=join rule". A rule that is missing is nobody's; "*" is everybody who is signed in.
func ParseTopic(text string) (channel.Channel, error) {
	c, err := channel.Parse(text)
	switch {
	case err != nil:
		return c, err
	case c.Publish != nil || c.Presence:
		return c, fmt.Errorf("%s: a topic has one rule, and shows nobody", c.Pattern)
	}
	return c, nil
}

// admitted tells which of the accounts of devices may join a topic now. It is never nil.
func admitted(app core.App, family channel.Channel, values map[string]string, rows []row) (map[Account]bool, error) {
	ids := map[string][]string{} // by collection
	for _, d := range rows {
		ids[d.Collection] = append(ids[d.Collection], d.Record)
	}
	may := make(map[Account]bool, len(rows))
	for collection, some := range ids {
		slices.Sort(some)
		records, err := app.FindRecordsByIds(collection, slices.Compact(some))
		if err != nil {
			return nil, fmt.Errorf("find accounts: %w", err)
		}
		for _, record := range records {
			if may[AccountOf(record)], err = channel.Allowed(app, family.Join, values, record); err != nil {
				return nil, err
			}
		}
	}
	return may, nil
}

func (r *Registry) handleJoin(e *core.RequestEvent) error {
	c, err := r.deviceCaller(e)
	if err != nil {
		return err
	}
	if err := api.Bind(e, &struct{}{}); err != nil {
		return err
	}
	topic := e.Request.PathValue("topic")
	if len(topic) > maxTopic {
		return api.Fail(ErrTopic, "")
	}
	family, values, ok := channel.Find(r.options.Families, topic)
	if ok {
		if ok, err = channel.Allowed(e.App, family.Join, values, e.Auth); err != nil {
			return err
		}
	}
	if !ok {
		return api.Fail(ErrTopic, "")
	}
	if err := e.App.RunInTransaction(func(tx core.App) error { return r.join(tx, c, topic) }); err != nil {
		return err
	}
	return e.NoContent(http.StatusNoContent)
}

// own returns the id of the caller's device.
func own(app core.App, c caller) (string, error) {
	params := c.account.params()
	params["session"] = c.session
	var ids []string
	err := app.ConcurrentDB().NewQuery(`SELECT id FROM ` + table + ` WHERE ` + owned + ` AND session = {:session}`).Bind(params).Column(&ids)
	if err != nil {
		return "", fmt.Errorf("find device: %w", err)
	}
	if len(ids) == 0 {
		return "", api.Fail(ErrUnregistered, "PUT /api/v1/push/devices/current comes first")
	}
	return ids[0], nil
}

// join enters the caller's device. Being there already is as good.
func (r *Registry) join(tx core.App, c caller, topic string) error {
	id, err := own(tx, c)
	if err != nil {
		return err
	}
	joined, err := joinedBy(tx, id)
	if err != nil {
		return err
	}
	if slices.Contains(joined, topic) {
		return nil
	}
	if len(joined) >= r.options.Topics {
		return api.Fail(ErrTopics, fmt.Sprintf("at most %d", r.options.Topics))
	}
	if _, err := tx.NonconcurrentDB().Insert(topics, dbx.Params{"topic": topic, "device": id, "joined_at": time.Now().UnixMilli()}).Execute(); err != nil {
		return fmt.Errorf("join topic: %w", err)
	}
	return nil
}

// handleLeave takes the caller's device out of a topic. No rule is asked, and not being there is as good.
func (r *Registry) handleLeave(e *core.RequestEvent) error {
	c, err := r.deviceCaller(e)
	if err != nil {
		return err
	}
	if err := api.Bind(e, &struct{}{}); err != nil {
		return err
	}
	id, err := own(e.App, c)
	if errors.Is(err, ErrUnregistered) {
		return e.NoContent(http.StatusNoContent)
	}
	if err != nil {
		return err
	}
	if _, err := e.App.NonconcurrentDB().Delete(topics, dbx.HashExp{"topic": e.Request.PathValue("topic"), "device": id}).Execute(); err != nil {
		return fmt.Errorf("leave topic: %w", err)
	}
	return e.NoContent(http.StatusNoContent)
}

// joinedBy lists the topics of a device.
func joinedBy(app core.App, id string) ([]string, error) {
	var names []string
	err := app.ConcurrentDB().Select("topic").From(topics).Where(dbx.HashExp{"device": id}).OrderBy("topic").Column(&names)
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	return names, nil
}
