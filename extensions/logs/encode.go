package logs

import (
	"bytes"
	"context"
	"encoding/json/jsontext"
	"errors"
	"io"
	"log/slog"
	"net/url"
	"strconv"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/logger"
	"github.com/pocketbase/pocketbase/tools/router"
)

const (
	// maxMessage and maxData are PocketBase's limits; the second is its default.
	maxMessage = 8000
	maxData    = 16 << 10

	// maxDepth is below SQLite's limit of 1000.
	maxDepth = 900

	// truncatedField marks a record from which something was left out, as in PocketBase.
	truncatedField = "__pb_truncated__"
)

// message is what the dashboard lists: the method and the readable address.
func (x *entry) message() string {
	address := x.url
	if plain, err := url.PathUnescape(x.url); err == nil {
		address = plain
	}
	return cut(escapeControl(x.method+" "+address), maxMessage)
}

// storedLevel is that of the row: PocketBase knows errors and the rest.
func (x *entry) storedLevel() slog.Level {
	if x.err != nil {
		return slog.LevelError
	}
	return slog.LevelInfo
}

// appendData adds the request as PocketBase's activity logger would store it: the names are those that the dashboard
// filters and shows. Only secrets are left out. What may be large comes last, because it is left out first.
func (x *entry) appendData(b []byte, cfg core.LogsConfig) []byte {
	o := object{buf: append(b, '{'), start: len(b), limit: maxData}
	if cfg.MaxDataSize > 0 {
		o.limit = int(cfg.MaxDataSize)
	}
	o.text("type", "request")
	o.raw("execTime", strconv.AppendFloat(nil, x.milliseconds(), 'f', -1, 64))
	o.raw("status", strconv.AppendInt(nil, int64(x.status), 10))
	o.text("method", x.method)
	o.text("url", x.url)
	o.text("requestId", x.id)
	o.text("auth", x.auth)
	if x.authID != "" && cfg.LogAuthId {
		o.text("authId", x.authID)
	}
	if x.ip != "" && cfg.LogIP {
		o.text("userIP", x.ip)
		o.text("remoteIP", x.remoteIP)
	}
	o.text("referer", x.referer)
	o.text("userAgent", x.userAgent)
	if x.err != nil {
		o.failure(x.err)
	}
	if x.meta != nil {
		o.raw("meta", plain(x.meta))
	}
	return o.end()
}

// object writes a JSON object of limited size: a member that does not fit is left out.
type object struct {
	buf       []byte
	start     int
	limit     int
	truncated bool
}

func (o *object) text(name, value string) {
	mark := o.name(name)
	o.buf = appendText(o.buf, value)
	o.fit(mark)
}

func (o *object) raw(name string, value []byte) {
	mark := o.name(name)
	o.buf = append(o.buf, value...)
	o.fit(mark)
}

// name begins a member and returns where.
func (o *object) name(name string) int {
	mark := len(o.buf)
	if mark > o.start+1 {
		o.buf = append(o.buf, ',')
	}
	o.buf = append(o.buf, '"')
	o.buf = append(o.buf, name...)
	o.buf = append(o.buf, '"', ':')
	return mark
}

func (o *object) fit(mark int) {
	if len(o.buf)-o.start >= o.limit {
		o.buf, o.truncated = o.buf[:mark], true
	}
}

func (o *object) end() []byte {
	if o.truncated {
		o.name(truncatedField)
		o.buf = append(o.buf, "true"...)
	}
	return append(o.buf, '}')
}

// failure describes an error as PocketBase does: the public message alone if the error is PocketBase's own, all of it if
// it was wrapped, and the internal reason as details.
func (o *object) failure(err error) {
	o.text("error", redactText(err.Error()))
	var stock *router.ApiError
	if !errors.As(err, &stock) {
		return
	}
	details := stock.RawData()
	if cause, ok := details.(error); ok && redactText(cause.Error()) != cause.Error() {
		details = redactText(cause.Error())
	}
	o.raw("details", plain(details))
}

// plain is the JSON of a value of any type as PocketBase's log forms it: errors as their text, those of validation as
// an object of texts.
func plain(v any) []byte {
	var out []byte
	h := logger.NewBatchHandler(logger.BatchOptions{BatchSize: 1, WriteFunc: func(_ context.Context, l []*logger.Log) error {
		var err error
		out, err = l[0].Data.MarshalJSON()
		return err
	}})
	r := slog.Record{}
	r.AddAttrs(slog.Any("v", v))
	if err := h.Handle(context.Background(), r); err != nil {
		return appendText(nil, "cannot be shown: "+err.Error())
	}
	const before, after = `{"v":`, `}`
	switch {
	case len(out) < len(before):
		return []byte("null") // an empty group is left out
	case isDeep(out):
		return appendText(nil, "cannot be shown: it is nested too deeply")
	}
	return out[len(before) : len(out)-len(after)]
}

// isDeep reports JSON that SQLite refuses, which would make filters fail on all rows.
func isDeep(value []byte) bool {
	d := jsontext.NewDecoder(bytes.NewReader(value))
	for {
		if _, err := d.ReadToken(); err != nil {
			return !errors.Is(err, io.EOF)
		}
		if d.StackDepth() > maxDepth {
			return true
		}
	}
}
