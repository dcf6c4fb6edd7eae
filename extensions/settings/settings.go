// Package settings reads the configuration of the program from the environment into structs that carry their own
// documentation as tags.
//
// Every feature owns a struct; the program reads each of them once and then asks for all problems together:
//
//	type Config struct {
//		Timeout time.Duration `env:"TIMEOUT" default:"5s" help:"how long a call may take"`
//		Key     string        `env:"KEY" secret:"true" help:"signs the calls"`
//	}
//
//	s := settings.Load(os.Environ())
//	push := settings.Section[push.Config](s, "push") // SATCHEL_PUSH_TIMEOUT, SATCHEL_PUSH_KEY or SATCHEL_PUSH_KEY_FILE
//	if err := s.Err(); err != nil { ... }
//
// Values: string, bool, int, int64, float64 (finite), time.Duration (not negative; days as "30d"), [Bytes], []string
// (comma separated), []netip.Prefix (an address alone means itself) and every encoding.TextUnmarshaler. An empty value
// is the empty string or list; for every other type it is a problem. A secret may be kept in a file that <KEY>_FILE
// names. The package has no tables and no routes.
//
// Failure modes: what an operator wrote wrong is collected and never stops the reading, and no message or listing
// contains the value of a secret. What a programmer wrote wrong (a tag, a type, a default) panics at once.
package settings

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// Prefix starts the name of every setting. Variables without it are ignored.
const Prefix = "SATCHEL_"

// fileSuffix turns the key of a secret into the key that names its file.
const fileSuffix = "_FILE"

// Settings holds the given variables, what the sections made of them, and every problem found on the way. It is not
// safe for concurrent use.
type Settings struct {
	values   map[string]string
	oldNames map[string]string // key in values -> the old name that the operator used
	sections map[string]bool
	claimed  map[string]bool // keys that belong to a field, files of secrets included
	keys     []Key
	problems []error
	warnings []string
}

// Load takes KEY=value pairs, as os.Environ returns them. A later pair replaces an earlier one with the same key, so a
// file that the environment overrides goes first: Load(append(file, os.Environ()...)).
func Load(environ []string) *Settings {
	s := &Settings{
		values:   map[string]string{},
		oldNames: map[string]string{},
		sections: map[string]bool{},
		claimed:  map[string]bool{},
	}
	for _, pair := range environ {
		if key, value, ok := strings.Cut(pair, "="); ok && strings.HasPrefix(key, Prefix) {
			s.values[key] = value
		}
	}
	return s
}

// Renamed declares that a setting had another name before the release since. Both names are full. The old one is still
// read, with a warning; both together are a problem. It panics after the section of the new name was read.
func (s *Settings) Renamed(oldName, newName, since string) {
	if !strings.HasPrefix(oldName, Prefix) || !strings.HasPrefix(newName, Prefix) || oldName == newName {
		panic(fmt.Sprintf("settings: Renamed(%q, %q) needs two full names", oldName, newName))
	}
	if s.claimed[oldName] || s.claimed[newName] {
		panic(fmt.Sprintf("settings: Renamed(%q, %q) comes once and before the section is read", oldName, newName))
	}
	s.claimed[oldName] = true
	for _, suffix := range []string{"", fileSuffix} {
		was, is := oldName+suffix, newName+suffix
		value, used := s.values[was]
		if !used {
			continue
		}
		delete(s.values, was)
		if _, both := s.values[is]; both {
			s.problem(was, fmt.Sprintf("was renamed to %s in %s and both are set; remove the old one", is, since))
			continue
		}
		s.values[is] = value
		s.oldNames[is] = was
		s.warnings = append(s.warnings, fmt.Sprintf("%s: was renamed to %s in %s; the old name still works", was, is, since))
	}
}

// Warnings lists what should be changed but works, one line each.
func (s *Settings) Warnings() []string { return slices.Clone(s.warnings) }

// SecretFile is the path from which the secret with the full name was read, or empty if it was given directly or not at
// all.
func (s *Settings) SecretFile(name string) string { return s.values[name+fileSuffix] }

// Section reads SATCHEL_<NAME>_<KEY> for every field of T; the empty name reads SATCHEL_<KEY>. A field with a problem
// keeps its default. If no field has one and T or *T has a method Validate() error, it is called: every line of its
// error is a problem, and a line that starts with the env tag of a field and a colon ("KEY: is too short") is reported
// under that field's full key. Reading a section twice panics.
func Section[T any](s *Settings, name string) T {
	var section T
	s.read(name, &section)
	return section
}

// Defaults returns T as an empty environment would make it, without validating it.
func Defaults[T any]() T {
	var section T
	value := reflect.ValueOf(&section).Elem()
	for _, f := range fieldsOf(value.Type(), "") {
		f.setDefault(value)
	}
	return section
}

// read fills the struct that target points to and validates it.
func (s *Settings) read(name string, target any) {
	if s.sections[name] {
		panic(fmt.Sprintf("settings: section %q is read twice", name))
	}
	s.sections[name] = true
	value := reflect.ValueOf(target).Elem()
	fields := fieldsOf(value.Type(), name)
	before := len(s.problems)
	var secrets []string
	for _, f := range fields {
		s.claim(f)
		f.setDefault(value)
		key := f.Key
		text, source, err := s.lookup(f)
		if err == nil && source != FromDefault {
			if f.Secret {
				secrets = append(append(secrets, text), splitList(text)...)
			}
			if err = f.set(value, text); err == nil {
				key.Value, key.Source = text, source
			}
		}
		if err != nil {
			s.problem(f.Name, err.Error())
		}
		if f.Secret && key.Value != "" {
			key.Value = mask
		}
		s.keys = append(s.keys, key)
	}
	if check, ok := target.(interface{ Validate() error }); ok && len(s.problems) == before {
		s.validated(name, fields, check.Validate(), secrets)
	}
}

// claim marks the keys of a field as known. Two fields with one key, or a field with the old name of another, panic.
func (s *Settings) claim(f field) {
	keys := []string{f.Name}
	if f.Secret {
		keys = append(keys, f.Name+fileSuffix)
	}
	for _, key := range keys {
		if s.claimed[key] {
			panic(fmt.Sprintf("settings: %s has two meanings", key))
		}
		s.claimed[key] = true
	}
}

// lookup finds the text given for a field and where it came from. Its errors never contain the text, nor the path of a
// file, because a secret that was written into the wrong variable looks like a path.
func (s *Settings) lookup(f field) (string, Source, error) {
	text, set := s.values[f.Name]
	path, inFile := s.values[f.Name+fileSuffix]
	switch {
	case f.Secret && inFile && set:
		return "", "", fmt.Errorf("is set together with %s; keep one of them", f.Name+fileSuffix)
	case f.Secret && inFile:
		text, err := readSecret(path)
		if err != nil {
			return "", "", fmt.Errorf("read the file that %s names: %w", f.Name+fileSuffix, err)
		}
		return text, FromFile, nil
	case set:
		return text, FromEnvironment, nil
	}
	return "", FromDefault, nil
}

// validated records the lines of the error of a Validate method.
func (s *Settings) validated(name string, fields []field, err error, secrets []string) {
	if err == nil {
		return
	}
	text := strings.TrimSpace(redact(err.Error(), secrets))
	for line := range strings.SplitSeq(cmp.Or(text, "is not valid"), "\n") {
		key, reason := keyPrefix(name)+"*", line
		if env, rest, ok := strings.Cut(line, ": "); ok {
			for _, f := range fields {
				if f.Name == keyPrefix(name)+env {
					key, reason = f.Name, rest
				}
			}
		}
		s.problem(key, reason)
	}
}

// problem records one line of the final error.
func (s *Settings) problem(key, reason string) {
	if old, ok := s.oldNames[key]; ok {
		reason += " (set by its old name " + old + ")"
	}
	s.problems = append(s.problems, fmt.Errorf("%s: %s", oneLine(key), oneLine(reason)))
}

// Err reports every problem at once, a line `SATCHEL_X: reason` for each, or nil. It belongs after the last section,
// because every variable with the prefix that no section has read is a problem as well.
func (s *Settings) Err() error {
	problems := slices.Clone(s.problems)
	unknown := make([]string, 0, len(s.values))
	for key := range s.values {
		if !s.claimed[key] {
			unknown = append(unknown, key)
		}
	}
	slices.Sort(unknown)
	for _, key := range unknown {
		problems = append(problems, fmt.Errorf("%s: %s", oneLine(cmp.Or(s.oldNames[key], key)), s.unknownReason(key)))
	}
	return errors.Join(problems...)
}

// unknownReason explains a variable that no section has read.
func (s *Settings) unknownReason(key string) string {
	if base, ok := strings.CutSuffix(key, fileSuffix); ok && s.claimed[base] {
		return "unknown setting: only secrets are read from files; set " + base
	}
	candidates := make([]string, 0, len(s.claimed))
	for _, k := range s.keys {
		candidates = append(candidates, k.Name)
		if k.Secret {
			candidates = append(candidates, k.Name+fileSuffix)
		}
	}
	if near := nearest(key, candidates); near != "" {
		return "unknown setting; did you mean " + near + "?"
	}
	return "unknown setting"
}
