package sync

import (
	"encoding/json"
	"encoding/json/jsontext"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/sync/view"
)

// Codes of polling, which belongs to the routes of the change log.
var (
	ErrPollDevice = &extensions.Code{Name: "changes.device_required", Status: http.StatusBadRequest, Title: "The device is not known: sign in for a session, or send X-Device-Id"}
	ErrPollReset  = &extensions.Code{Name: "changes.cursor_reset", Status: http.StatusGone, Title: "The cursor cannot be continued: start over without one"}
)

// NextCursorHeader carries the cursor of an answer without a body.
const NextCursorHeader = "X-Next-Cursor"

// Polling adds GET /api/v1/changes to the extension of the change log, whose word stands in the path.
func (s *Sync) Polling(x extensions.Extension) extensions.Extension {
	routes := x.Routes
	x.Codes = append(slices.Clone(x.Codes), ErrPollDevice, ErrPollReset)
	x.Routes = func(g *router.RouterGroup[*core.RequestEvent]) {
		if routes != nil {
			routes(g)
		}
		g.GET("", s.pollAll)
	}
	return x
}

func (s *Sync) pollAll(e *core.RequestEvent) error {
	query, err := url.ParseQuery(e.Request.URL.RawQuery)
	if err != nil {
		return api.Fail(api.ErrBadRequest, "the query string is not well-formed").Because(err)
	}
	var names []string
	if list := query.Get("collections"); list != "" {
		names = strings.Split(list, ",")
	} else if names, err = s.all(e); err != nil {
		return err
	}
	return s.poll(e, query, "changes", names)
}

// all are the collections that the caller may list and that can be polled.
func (s *Sync) all(e *core.RequestEvent) ([]string, error) {
	list, err := e.App.FindAllCollections()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, c := range list {
		if c.ListRule != nil && Unsupported(c) == "" {
			names = append(names, c.Name)
		}
	}
	slices.Sort(names)
	return names[:min(len(names), maxCollections)], nil
}

func (s *Sync) pollOne(e *core.RequestEvent) error {
	query, err := url.ParseQuery(e.Request.URL.RawQuery)
	if err != nil {
		return api.Fail(api.ErrBadRequest, "the query string is not well-formed").Because(err)
	}
	name := e.Request.PathValue("collection")
	return s.poll(e, query, "changes/"+name, []string{name})
}

// poll answers with what has changed for the device since the cursor.
func (s *Sync) poll(e *core.RequestEvent, query url.Values, channel string, names []string) error {
	caller, err := s.Caller(e)
	if errors.Is(err, ErrDevice) {
		return api.Fail(ErrPollDevice, "")
	}
	if err != nil {
		return err
	}
	limit, err := s.pollLimit(query.Get("limit"))
	if err != nil {
		return err
	}
	if len(names) > maxCollections {
		return api.Fail(api.ErrBadRequest, "these are too many collections")
	}
	if err := s.Supported(e, names...); err != nil {
		return err
	}
	src, err := s.Source(e)
	if err != nil {
		return err
	}
	ctx := e.Request.Context()
	d, err := s.engine.Open(ctx, caller.Key(channel))
	if err != nil {
		return err
	}
	defer d.Close()
	cursor, _ := view.ParseCursor(query.Get("since"))
	if query.Get("since") != "" {
		known, err := d.Known(ctx, src, cursor)
		if err != nil {
			return err
		}
		if !known {
			return api.Fail(ErrPollReset, "")
		}
	}
	page, err := s.Pull(e, d, src, view.Request{Cursor: cursor, Collections: names, Limit: limit, Bytes: pageBytes})
	if err != nil {
		return err
	}
	if len(page.Gone) > 0 && len(page.Gone) == len(names) {
		return api.Fail(api.ErrNotFound, "there is no such collection")
	}
	return s.writePoll(e, page, limit)
}

func (s *Sync) pollLimit(text string) (int, error) {
	if text == "" {
		return s.cfg.Limit, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > s.cfg.LimitMax {
		return 0, api.Fail(api.ErrBadRequest, "limit must be a whole number from 1 to "+strconv.Itoa(s.cfg.LimitMax))
	}
	return n, nil
}

func (s *Sync) writePoll(e *core.RequestEvent, page *view.Page, limit int) error {
	next := page.Cursor.String()
	h := e.Response.Header()
	h.Set(NextCursorHeader, next)
	if !page.More {
		h.Set("Retry-After", strconv.Itoa(int((s.cfg.Poll+time.Second-1)/time.Second)))
	}
	if len(page.Deltas) == 0 && !page.More {
		h.Set("Cache-Control", "no-store")
		e.Response.WriteHeader(http.StatusNoContent)
		return nil
	}
	data, err := encodeItems(page.Deltas)
	if err != nil {
		return err
	}
	return api.WritePage(e, data, api.Page{Limit: limit, NextCursor: next, Last: !page.More})
}

// encodeItems lists changes as {collection, id, action, version, record}, the last two of rows that are there.
func encodeItems(list []view.Delta) (out json.RawMessage, err error) {
	out = []byte{'['}
	begin := func(collection, id, action string) {
		if len(out) > 1 {
			out = append(out, ',')
		}
		for _, member := range []struct{ name, value string }{{`{"collection":`, collection}, {`,"id":`, id}, {`,"action":`, action}} {
			var failed error
			out, failed = jsontext.AppendQuote(append(out, member.name...), member.value)
			err = errors.Join(err, failed)
		}
	}
	for _, delta := range list {
		for _, row := range delta.Upserts {
			begin(delta.Name, row.ID, "upsert")
			out = strconv.AppendInt(append(out, `,"version":`...), row.Version, 10)
			out = append(append(append(out, `,"record":`...), row.Body...), '}')
		}
		for _, id := range delta.Removes {
			begin(delta.Name, id, "remove")
			out = append(out, '}')
		}
	}
	if err != nil {
		return nil, fmt.Errorf("encode changes: %w", err)
	}
	return append(out, ']'), nil
}
