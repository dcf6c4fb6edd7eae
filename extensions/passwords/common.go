package passwords

import (
	"bufio"
	"bytes"
	"compress/gzip"
	_ "embed"
	"errors"
	"fmt"
	"strings"
	"sync"

	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/core"
)

// commonList holds 49,233 passwords in lower case, sorted, one a line: the most frequent ones of published leaks, as
// zxcvbn-ts ships them (package @zxcvbn-ts/language-common 4.1.3, MIT, common.LICENSE.txt).
//
//go:embed common.txt.gz
var commonList []byte

// common is the list in memory, from the first time that a password is set. The zero value is ready.
type common struct {
	once sync.Once
	set  map[string]struct{}
	err  error
}

// has reports whether the password is on the list, in whatever case it is written.
func (c *common) has(password string) (bool, error) {
	c.once.Do(func() { c.set, c.err = readCommon() })
	_, found := c.set[strings.ToLower(password)]
	return found, c.err
}

func readCommon() (map[string]struct{}, error) {
	r, err := gzip.NewReader(bytes.NewReader(commonList))
	if err != nil {
		return nil, fmt.Errorf("open list of common passwords: %w", err)
	}
	set := map[string]struct{}{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		set[lines.Text()] = struct{}{}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read list of common passwords: %w", err)
	}
	return set, nil
}

// refuseCommon adds the password to what is wrong with a record. It sees passwords that are being set, in whatever way a
// record is saved; those that are stored have no text.
func (h *Hasher) refuseCommon(e *core.RecordEvent) error {
	err := e.Next()
	if !e.Record.Collection().IsAuth() {
		return err
	}
	value, ok := e.Record.GetRaw(core.FieldNamePassword).(*core.PasswordFieldValue)
	if !ok || value == nil || value.Plain == "" {
		return err
	}
	found, listErr := h.common.has(value.Plain)
	if listErr != nil {
		return errors.Join(err, listErr)
	}
	if !found {
		return err
	}
	problem := validation.NewError(ErrTooCommon.Name, ErrTooCommon.Title+".")
	var others validation.Errors
	switch {
	case err == nil:
		return validation.Errors{core.FieldNamePassword: problem}
	case errors.As(err, &others):
		if others[core.FieldNamePassword] == nil {
			others[core.FieldNamePassword] = problem
		}
		return others
	}
	return err
}
