// Package archive writes the data of an account into a zip file, in bounded memory and without a long transaction. It
// decides on nothing: what belongs to the account is told to it.
package archive

import (
	"archive/zip"
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/filesystem"

	"github.com/satchelbase/satchel/extensions/account/ownership"
)

const (
	// exportWindow is how many ids of a collection are held at a time.
	exportWindow = 20_000

	// exportBatch is how many records are held at a time. A record may have megabytes.
	exportBatch = 16
)

const readme = `This archive holds the data of one account.

account.json        the account itself
data/<name>.json    the records of a collection that belong to the account, one in each line
files/<name>/<id>/  the files of these records
<name>.json         what other parts of the service hold about the account
manifest.json       what is inside: how many records, and the names and types of their fields

The records were read one after the other while the service was running. Passwords and keys are never part of an export.
`

// manifest says what is in an archive.
type manifest struct {
	CreatedAt   time.Time          `json:"createdAt"`
	Account     manifestAccount    `json:"account"`
	Collections []manifestContents `json:"collections"`
	Sections    []string           `json:"sections"`
}

type manifestAccount struct {
	Collection string            `json:"collection"`
	ID         string            `json:"id"`
	Fields     map[string]string `json:"fields"`
}

type manifestContents struct {
	Collection   string            `json:"collection"`
	Records      int64             `json:"records"`
	Files        int64             `json:"files"`
	MissingFiles int64             `json:"missingFiles"`
	Fields       map[string]string `json:"fields"` // name: type
}

// archive is a zip file that is being written.
type archive struct {
	app      core.App
	zip      *zip.Writer
	now      time.Time
	storage  *filesystem.System
	progress func(done int64)
	done     int64
}

// Source is what goes into an archive.
type Source struct {
	App      core.App
	Account  *core.Record
	Plan     *ownership.Plan
	Sections []Section
	Now      time.Time
}

// Section is what a feature holds of the account. Export writes one JSON value.
type Section struct {
	Name   string
	Export func(ctx context.Context, app core.App, account *core.Record, w io.Writer) error
}

// Write makes the archive of an account. It holds a few records in memory at a time, and no transaction for longer than it
// takes to read these. progress is told the number of records that are written.
func Write(ctx context.Context, w io.Writer, from Source, progress func(done int64)) error {
	account := from.Account
	storage, err := from.App.NewFilesystem()
	if err != nil {
		return fmt.Errorf("open storage: %w", err)
	}
	defer func() { _ = storage.Close() }()
	storage.SetContext(ctx)
	x := &archive{app: from.App, zip: zip.NewWriter(w), now: from.Now, storage: storage, progress: progress}
	if err := x.text("README.txt", []byte(readme)); err != nil {
		return err
	}
	m := manifest{
		CreatedAt: from.Now.UTC().Truncate(time.Second), Collections: []manifestContents{}, Sections: []string{},
		Account: manifestAccount{account.Collection().Name, account.Id, fieldTypes(account.Collection(), false)},
	}
	if err := x.account(account); err != nil {
		return err
	}
	for _, s := range from.Plan.Sets {
		if !s.Export {
			continue
		}
		contents, err := x.set(ctx, s, account.Id)
		if err != nil {
			return err
		}
		m.Collections = append(m.Collections, contents)
	}
	for _, s := range from.Sections {
		m.Sections = append(m.Sections, s.Name)
		out, err := x.create(s.Name+".json", zip.Deflate)
		if err != nil {
			return err
		}
		if err := s.Export(ctx, from.App, account, out); err != nil {
			return fmt.Errorf("export %s: %w", s.Name, err)
		}
	}
	raw, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("marshal manifest: %w", err)
	}
	if err := x.text("manifest.json", raw); err != nil {
		return err
	}
	return x.zip.Close()
}

// create begins an entry, and ends the one before it.
func (x *archive) create(name string, method uint16) (io.Writer, error) {
	out, err := x.zip.CreateHeader(&zip.FileHeader{Name: name, Method: method, Modified: x.now})
	if err != nil {
		return nil, fmt.Errorf("begin %s in the archive: %w", name, err)
	}
	return out, nil
}

func (x *archive) text(name string, content []byte) error {
	out, err := x.create(name, zip.Deflate)
	if err != nil {
		return err
	}
	_, err = out.Write(content)
	return err
}

func (x *archive) account(account *core.Record) error {
	raw, err := recordJSON(account, false)
	if err != nil {
		return err
	}
	if err := x.text("account.json", append(raw, '\n')); err != nil {
		return err
	}
	_, _, err = x.files(account, false)
	return err
}

// set writes the records of a collection and then their files: an archive has one entry open at a time.
func (x *archive) set(ctx context.Context, s *ownership.Set, account string) (manifestContents, error) {
	m := manifestContents{Collection: s.Collection.Name, Fields: fieldTypes(s.Collection, s.Hidden)}
	entry, err := x.create("data/"+s.Collection.Name+".json", zip.Deflate)
	if err != nil {
		return m, err
	}
	out := bufio.NewWriter(entry)
	_, _ = out.WriteString("[") // the writer remembers errors
	err = x.each(ctx, s, account, func(record *core.Record) error {
		raw, err := recordJSON(record, s.Hidden)
		if err != nil {
			return err
		}
		if m.Records > 0 {
			_ = out.WriteByte(',')
		}
		_ = out.WriteByte('\n')
		m.Records++
		x.done++
		x.progress(x.done)
		_, err = out.Write(raw)
		return err
	})
	if err != nil {
		return m, err
	}
	_, _ = out.WriteString("\n]\n")
	if err := out.Flush(); err != nil {
		return m, err
	}
	if !slices.ContainsFunc(s.Collection.Fields, func(f core.Field) bool { return f.Type() == core.FieldTypeFile }) {
		return m, nil
	}
	return m, x.each(ctx, s, account, func(record *core.Record) error {
		copied, missing, err := x.files(record, s.Hidden)
		m.Files += copied
		m.MissingFiles += missing
		return err
	})
}

// each reads the records of the set in the order of their ids.
func (x *archive) each(ctx context.Context, s *ownership.Set, account string, do func(*core.Record) error) error {
	after := ""
	for {
		ids, err := s.IDs(x.app, account, after, exportWindow)
		if err != nil || len(ids) == 0 {
			return err
		}
		after = ids[len(ids)-1]
		for some := range slices.Chunk(ids, exportBatch) {
			if err := ctx.Err(); err != nil {
				return err
			}
			var records []*core.Record
			query := x.app.RecordQuery(s.Collection).AndWhere(dbx.In(s.Collection.Name+".id", anys(some)...)).OrderBy(s.Collection.Name + ".id")
			if err := query.All(&records); err != nil {
				return fmt.Errorf("read records of %s: %w", s.Collection.Name, err)
			}
			for _, record := range records {
				if err := do(record); err != nil {
					return err
				}
			}
		}
	}
}

func anys(ids []string) []any {
	out := make([]any, len(ids))
	for i, id := range ids {
		out[i] = id
	}
	return out
}

// files copies the files of a record. One that is not there is counted: the rest of the data is not held back for it.
func (x *archive) files(record *core.Record, hidden bool) (copied, missing int64, err error) {
	for _, f := range record.Collection().Fields {
		if f.Type() != core.FieldTypeFile || !exported(f, hidden) {
			continue
		}
		for _, name := range record.GetStringSlice(f.GetName()) {
			found, err := x.copy(record, name)
			if err != nil {
				return copied, missing, err
			}
			if found {
				copied++
			} else {
				missing++
			}
		}
	}
	return copied, missing, nil
}

func (x *archive) copy(record *core.Record, name string) (found bool, err error) {
	source := path.Join(record.BaseFilesPath(), name)
	if found, err = x.storage.Exists(source); err != nil || !found {
		return false, err
	}
	in, err := x.storage.GetReader(source)
	if err != nil {
		return false, fmt.Errorf("open file of a record: %w", err)
	}
	defer func() { _ = in.Close() }()
	// Most uploads are compressed already.
	out, err := x.create(path.Join("files", record.Collection().Name, record.Id, name), zip.Store)
	if err != nil {
		return false, err
	}
	if _, err := io.Copy(out, in); err != nil {
		return false, fmt.Errorf("copy file of a record: %w", err)
	}
	return true, nil
}

// exported reports whether a field is part of an export. Passwords and the key of tokens never are.
func exported(f core.Field, hidden bool) bool {
	return f.Type() != core.FieldTypePassword && f.GetName() != core.FieldNameTokenKey && (hidden || !f.GetHidden())
}

func fieldTypes(c *core.Collection, hidden bool) map[string]string {
	out := map[string]string{}
	for _, f := range c.Fields {
		if exported(f, hidden) {
			out[f.GetName()] = f.Type()
		}
	}
	return out
}

// recordJSON is a record in one line, its fields in the order of the collection. The address is in it, whether others may
// see it or not.
func recordJSON(record *core.Record, hidden bool) ([]byte, error) {
	out := []byte{'{'}
	for _, f := range record.Collection().Fields {
		if !exported(f, hidden) {
			continue
		}
		value, err := json.Marshal(record.Get(f.GetName()))
		if err != nil {
			return nil, fmt.Errorf("marshal %s of a record of %s: %w", f.GetName(), record.Collection().Name, err)
		}
		name, err := json.Marshal(f.GetName())
		if err != nil {
			return nil, err
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(append(out, name...), ':'), value...)
	}
	return append(out, '}'), nil
}
