package settings

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strings"
)

// mask stands for the value of a secret. Its length says nothing about the secret's.
const mask = "••••"

// Source says where a value came from.
type Source string

// The places that values come from. FromFile is the file that the _FILE variable of a secret names.
const (
	FromDefault     Source = "default"
	FromEnvironment Source = "environment"
	FromFile        Source = "file"
)

// Key describes one setting and its effective value. Value is the text as it was given, or a mask for a secret that
// is set.
type Key struct {
	Name    string `json:"name"`
	Section string `json:"section"`
	Type    string `json:"type"`
	Default string `json:"default"`
	Help    string `json:"help"`
	Secret  bool   `json:"secret"`
	Value   string `json:"value"`
	Source  Source `json:"source"`
}

// Keys lists every setting in the order in which the sections were read.
func (s *Settings) Keys() []Key { return append([]Key{}, s.keys...) }

var (
	sectionPattern = regexp.MustCompile(`^([a-z][a-z0-9]*)?$`)
	envPattern     = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)
)

// field is one field of a section's struct.
type field struct {
	Key
	index int
}

// keyPrefix is the part of a key that all settings of a section share.
func keyPrefix(section string) string {
	if section == "" {
		return Prefix
	}
	return Prefix + strings.ToUpper(section) + "_"
}

// fieldsOf reads the tags of a struct type. It panics on every mistake in them.
func fieldsOf(t reflect.Type, section string) []field {
	if t.Kind() != reflect.Struct {
		panic(fmt.Sprintf("settings: %s is not a struct", t))
	}
	if !sectionPattern.MatchString(section) {
		panic(fmt.Sprintf("settings: section %q is not one lower-case word", section))
	}
	fields := make([]field, 0, t.NumField())
	zero := reflect.New(t).Elem()
	for i := range t.NumField() {
		sf := t.Field(i)
		env, tagged := sf.Tag.Lookup("env")
		if !sf.IsExported() && !tagged {
			continue
		}
		f := field{
			index:   i,
			Name:    keyPrefix(section) + env,
			Section: section,
			Default: sf.Tag.Get("default"),
			Help:    sf.Tag.Get("help"),
			Source:  FromDefault,
		}
		if err := f.complete(sf, zero); err != nil {
			panic(fmt.Sprintf("settings: %s.%s: %v", t, sf.Name, err))
		}
		fields = append(fields, f)
	}
	return fields
}

// complete checks the tags of a struct field and derives the rest of its description.
func (f *field) complete(sf reflect.StructField, zero reflect.Value) error {
	if !sf.IsExported() {
		return errors.New("has an env tag but is not exported")
	}
	if env := sf.Tag.Get("env"); !envPattern.MatchString(env) {
		return fmt.Errorf("env tag %q is missing or not upper case", env)
	}
	switch secret := sf.Tag.Get("secret"); secret {
	case "":
	case "true":
		f.Secret = true
	default:
		return fmt.Errorf("secret tag %q is not \"true\"", secret)
	}
	if f.Type = typeName(sf.Type); f.Type == "" {
		return fmt.Errorf("type %s is not supported", sf.Type)
	}
	if f.Default == "" {
		f.Default = zeroText(zero.Field(f.index))
	} else if f.Secret {
		return errors.New("a secret cannot have a default, which everybody would know")
	} else if err := parse(zero.Field(f.index), f.Default); err != nil {
		return fmt.Errorf("default %q %w", f.Default, err)
	}
	if strings.ContainsAny(f.Default, "\r\n") {
		return errors.New("default has more than one line")
	}
	if !f.Secret {
		f.Value = f.Default
	}
	return nil
}

// setDefault gives the field in the struct value its default.
func (f *field) setDefault(value reflect.Value) {
	target := value.Field(f.index)
	target.SetZero()
	if f.Default == "" || f.Secret {
		return
	}
	if err := parse(target, f.Default); err != nil {
		panic(fmt.Sprintf("settings: %s: default %q %v", f.Name, f.Default, err))
	}
}

// set gives the field in the struct value what the operator wrote; on an error it keeps its default. The error does not
// contain the value of a secret: a type's own message could.
func (f *field) set(value reflect.Value, text string) error {
	parsed := reflect.New(value.Field(f.index).Type()).Elem()
	err := parse(parsed, text)
	switch {
	case err == nil:
		value.Field(f.index).Set(parsed)
		return nil
	case strings.TrimSpace(text) == "":
		return errors.New("must not be empty; remove it to use the default")
	case f.Secret:
		return fmt.Errorf("is not a valid %s (the value is secret and not shown)", f.Type)
	}
	return fmt.Errorf("%w, not %s", err, quote(text))
}
