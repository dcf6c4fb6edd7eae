package device

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
)

// Hours are quiet hours. Without a time zone they are by the clock of the device that was seen last, also on a journey.
type Hours struct {
	Start    string `json:"start"`
	End      string `json:"end"`
	TimeZone string `json:"timeZone,omitempty"`
}

// wishes are what an account has said; what it has not said is the category's default.
type wishes struct {
	Categories map[string]bool `json:"categories,omitempty"`
	QuietHours *Hours          `json:"quietHours,omitempty"`
}

// off reports whether a category is switched off.
func (w wishes) off(c Category) bool {
	on, said := w.Categories[c.Name]
	return c.Policy != Always && (said && !on || !said && c.Off)
}

// quiet is the hours; false if there are none.
func (w wishes) quiet() (quiet, bool) {
	if w.QuietHours == nil {
		return quiet{}, false
	}
	start, bad := parseClock(w.QuietHours.Start)
	end, err := parseClock(w.QuietHours.End)
	return quiet{start, end}, bad == nil && err == nil && start != end
}

// choice is a category as apps show it.
type choice struct {
	Name     string `json:"name"`
	Enabled  bool   `json:"enabled"`
	Required bool   `json:"required"` // it cannot be switched off
}

// settings is the body of GET /api/v1/push/preferences.
type settings struct {
	Categories []choice `json:"categories"`
	QuietHours *Hours   `json:"quietHours"`
}

func (r *Registry) settings(w wishes) settings {
	out := settings{Categories: make([]choice, len(r.options.Categories)), QuietHours: w.QuietHours}
	for i, c := range r.options.Categories {
		out.Categories[i] = choice{c.Name, !w.off(c), c.Policy == Always}
	}
	return out
}

// wishesOf reads what accounts have said. Those that have said nothing are not in the answer.
func wishesOf(ctx context.Context, app core.App, accounts string) (map[Account]wishes, error) {
	var rows []struct {
		Collection string `db:"collection"`
		Record     string `db:"record"`
		Data       string `db:"data"`
	}
	err := app.ConcurrentDB().NewQuery(`SELECT p.collection, p.record, p.data FROM json_each({:accounts}) j CROSS JOIN ` + preferences + ` p ON ` + listed("p")).
		Bind(dbx.Params{"accounts": accounts}).WithContext(ctx).All(&rows)
	if err != nil {
		return nil, fmt.Errorf("read preferences: %w", err)
	}
	out := make(map[Account]wishes, len(rows))
	for _, row := range rows {
		var w wishes
		if err := json.Unmarshal([]byte(row.Data), &w); err != nil {
			return nil, fmt.Errorf("decode preferences: %w", err)
		}
		out[Account{row.Collection, row.Record}] = w
	}
	return out, nil
}

func wishesOfOne(ctx context.Context, app core.App, a Account) (wishes, error) {
	raw, err := encode([]Account{a})
	if err != nil {
		return wishes{}, err
	}
	all, err := wishesOf(ctx, app, raw)
	return all[a], err
}

func (r *Registry) handlePreferences(e *core.RequestEvent) error {
	c, err := r.caller(e)
	if err != nil {
		return err
	}
	w, err := wishesOfOne(e.Request.Context(), e.App, c.account)
	if err != nil {
		return err
	}
	return api.Write(e, http.StatusOK, r.settings(w))
}

// change is the body of PATCH /api/v1/push/preferences. A category that is null gets its default back; quiet hours that
// are null end.
type change struct {
	Categories map[string]*bool `json:"categories,omitempty"`
	QuietHours *Hours           `json:"quietHours,omitempty"`
}

// readChange returns a change that was checked, and whether the quiet hours are to end.
func (r *Registry) readChange(e *core.RequestEvent) (in change, end bool, err error) {
	if err := api.Bind(e, &in); err != nil {
		return in, false, err
	}
	raw, err := api.ReadBody(e)
	if err != nil {
		return in, false, err
	}
	if len(raw) > 0 {
		members, err := api.Object(raw)
		if err != nil {
			return in, false, err
		}
		hours, given := members["quietHours"]
		end = given && hours.Kind() == 'n'
	}
	return in, end, r.check(in)
}

// check tells everything that is wrong with a change.
func (r *Registry) check(in change) error {
	var mistakes []api.FieldError
	bad := func(field, detail string) {
		mistakes = append(mistakes, api.Invalid(field, api.ErrFieldInvalid, detail))
	}
	for name, on := range in.Categories {
		switch c, ok := r.byName[name]; {
		case !ok:
			mistakes = append(mistakes, api.Invalid("categories", api.ErrFieldUnknown, "a name is that of no category"))
		case c.Policy == Always && on != nil && !*on:
			bad("categories."+name, "cannot be switched off")
		}
	}
	if h := in.QuietHours; h != nil {
		start, noStart := parseClock(h.Start)
		end, noEnd := parseClock(h.End)
		switch {
		case noStart != nil:
			bad("quietHours.start", "must be a time of the day, such as 22:00")
		case noEnd != nil:
			bad("quietHours.end", "must be a time of the day, such as 07:00")
		case start == end:
			bad("quietHours.end", "must be another time than the start")
		}
		if h.TimeZone != "" && r.zone(h.TimeZone) == nil {
			bad("quietHours.timeZone", "must be a name of the time zone database, such as Europe/Berlin")
		}
	}
	if len(mistakes) > 0 {
		return api.InvalidBody(mistakes[:min(len(mistakes), maxMistakes)]...)
	}
	return nil
}

// maxMistakes bounds the answer to a body that is wrong in every member.
const maxMistakes = 50

func (r *Registry) handleChange(e *core.RequestEvent) error {
	c, err := r.caller(e)
	if err != nil {
		return err
	}
	in, end, err := r.readChange(e)
	if err != nil {
		return err
	}
	var w wishes
	err = e.App.RunInTransaction(func(tx core.App) error {
		if err := r.standing(tx, c); err != nil {
			return err
		}
		if w, err = wishesOfOne(e.Request.Context(), tx, c.account); err != nil {
			return err
		}
		r.apply(&w, in, end)
		return saveWishes(tx, c.account, w, time.Now().UnixMilli())
	})
	if err != nil {
		return err
	}
	return api.Write(e, http.StatusOK, r.settings(w))
}

// apply changes what an account has said, and forgets what it has said about categories that are gone.
func (r *Registry) apply(w *wishes, in change, end bool) {
	kept := map[string]bool{}
	for name, on := range w.Categories {
		if _, ok := r.byName[name]; ok {
			kept[name] = on
		}
	}
	for name, on := range in.Categories {
		if delete(kept, name); on != nil {
			kept[name] = *on
		}
	}
	w.Categories = kept
	if in.QuietHours != nil || end {
		w.QuietHours = in.QuietHours
	}
}

func saveWishes(tx core.App, a Account, w wishes, now int64) error {
	raw, err := json.Marshal(w)
	if err != nil {
		return fmt.Errorf("encode preferences: %w", err)
	}
	params := a.params()
	params["data"], params["now"] = string(raw), now
	_, err = tx.NonconcurrentDB().NewQuery(`INSERT OR REPLACE INTO ` + preferences + ` (collection, record, data, updated_at)
		VALUES ({:collection}, {:record}, {:data}, {:now})`).Bind(params).Execute()
	if err != nil {
		return fmt.Errorf("store preferences: %w", err)
	}
	return nil
}
