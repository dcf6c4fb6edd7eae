package template_test

import (
	"strings"
	"testing"

	"github.com/satchelbase/satchel/extensions/push/template"
)

func compile(t testing.TB, texts template.Texts) *template.Set {
	t.Helper()
	s, err := template.Compile(texts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRender(t *testing.T) {
	items := "{n, plural, =0{Nothing} one{# item} other{# items}} in {list}"
	for _, c := range []struct {
		locale, pattern, want string
		values                map[string]any
	}{
		{"en", "Hello {name}!", "Hello Ada!", map[string]any{"name": "Ada"}},
		{"en", items, "Nothing in a", map[string]any{"n": 0, "list": "a"}},
		{"en", items, "1 item in a", map[string]any{"n": 1.0, "list": "a"}},
		{"en", items, "1,234 items in a", map[string]any{"n": 1234, "list": "a"}},
		{"de", "{n, plural, one{# Punkt} other{# Punkte}}", "1.234,5 Punkte", map[string]any{"n": 1234.5}},
		{"pl", "{n, plural, one{# plik} few{# pliki} many{# plików} other{# pliku}}", "3 pliki", map[string]any{"n": 3}},
		{"pl", "{n, plural, one{# plik} few{# pliki} many{# plików} other{# pliku}}", "12 plików", map[string]any{"n": 12}},
		{"pl", "{n, plural, one{# plik} few{# pliki} many{# plików} other{# pliku}}", "1,5 pliku", map[string]any{"n": 1.5}},
		{"ar", "{n, plural, zero{z} one{o} two{t} few{f} many{m} other{x}}", "t", map[string]any{"n": 2}},
		{"fr", "{n, plural, one{o} many{m} other{x}}", "o", map[string]any{"n": 0}},
		{"en", "{n, selectordinal, one{#st} two{#nd} few{#rd} other{#th}}", "22nd", map[string]any{"n": 22}},
		{"en", "{n, plural, offset:1 =0{nobody} =1{{who}} one{{who} and # other} other{{who} and # others}}", "Ada and 2 others", map[string]any{"n": 3, "who": "Ada"}},
		{"en", "{n, plural, offset:1 =0{nobody} =1{{who}} one{{who} and # other} other{{who} and # others}}", "Ada", map[string]any{"n": 1, "who": "Ada"}},
		{"en", "{g, select, female{her} male{his} other{their}} photo", "their photo", map[string]any{"g": "x"}},
		{"en", "{g, select, true{on} other{off}}", "on", map[string]any{"g": true}},
		{"en", "it's '{'{a}'}' and ''{b}''", "it's {1} and 'true'", map[string]any{"a": 1, "b": true}},
		{"en", "{n, number}% # of {a}", "12,345.679% # of {n}", map[string]any{"n": 12345.6789, "a": "{n}"}},
		{"en", "{n, plural, other{'#' #}}", "# 5", map[string]any{"n": 5}},
		{"en", "{n, plural, one{a} other{b}}", "b", map[string]any{"n": 20_000_000}},
		{"", "", "", nil},
	} {
		texts := template.Texts{"default": {Body: c.pattern}}
		if c.locale != "" {
			texts[c.locale] = template.Text{Body: c.pattern}
		}
		got, err := compile(t, texts).Render(c.locale, c.values)
		if err != nil || got.Body != c.want {
			t.Errorf("%s %q: %q (%v), want %q", c.locale, c.pattern, got.Body, err, c.want)
		}
	}
}

func TestFallback(t *testing.T) {
	s := compile(t, template.Texts{"default": {Title: "d"}, "pt": {Title: "pt"}, "pt-BR": {Title: "br"}, "zh-Hant": {Title: "hant"}})
	for locale, want := range map[string]string{
		"pt-BR": "br", "pt_br": "br", "pt-PT": "pt", "pt": "pt", "en": "d", "": "d", "zh-Hant-TW": "hant", "zh": "d", "not a locale": "d", "pt-BR-x-a": "br",
	} {
		if got, err := s.Render(locale, nil); err != nil || got.Title != want {
			t.Errorf("%s: %q (%v), want %q", locale, got.Title, err, want)
		}
	}
}

func TestMistakes(t *testing.T) {
	for pattern, want := range map[string]string{
		"{": "name", "}": "not opened", "{a": "comma", "{a, date}": "is not number", "{a, plural, one{x}}": "other is missing",
		"{a, plural, other{x}": "a case is", "{a, plural, other{x": "not closed", "{a, plural, uno{x} other{y}}": "none of",
		"{a, select, x{1} x{2} other{}}": "twice", "{a, plural, =1{x} =1{y} other{}}": "twice", "{a, plural, =x{x} other{}}": "no number",
		"{a, plural, offset:x other{}}": "whole number", "{a, number, x}": "closing brace", "\xff": "UTF-8", strings.Repeat("x", 4097): "4096",
		strings.Repeat("{a,select,other{", 9): "in each other",
	} {
		if _, err := template.Compile(template.Texts{"default": {Title: pattern}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", pattern, err, want)
		}
	}
	if _, err := template.Compile(template.Texts{"english!": {}, "de": {}}); err == nil || !strings.Contains(err.Error(), "english!") || !strings.Contains(err.Error(), "default is missing") {
		t.Errorf("a bad tag and no default: %v", err)
	}
	s := compile(t, template.Texts{"default": {Title: "{a}"}, "de": {Title: "{a} {b, plural, other{#}}"}})
	for _, values := range []map[string]any{nil, {"a": "x"}, {"a": "x", "b": "many"}, {"a": []any{}, "b": 1}} {
		if err := s.Check(values); err == nil {
			t.Errorf("%v is taken", values)
		}
	}
	if err := s.Check(map[string]any{"a": "x", "b": 1}); err != nil {
		t.Error(err)
	}
	if err := compile(t, template.Texts{"default": {Title: "a"}, "de": {Body: "{a}"}}).Check(map[string]any{"a": ""}); err == nil {
		t.Error("a text that says nothing in one language is taken")
	}
}

// A value that is too long is cut, and a text cannot be made to grow without bound.
func TestBounds(t *testing.T) {
	pattern := strings.Repeat("{a}", 1000)
	got, err := compile(t, template.Texts{"default": {Body: pattern}}).Render("en", map[string]any{"a": strings.Repeat("ä", 2000)})
	if err != nil || len(got.Body) > 4096 || !strings.HasSuffix(got.Body, "ä…") {
		t.Errorf("%d bytes, %v", len(got.Body), err)
	}
}

func FuzzCompile(f *testing.F) {
	f.Add("{n, plural, offset:1 =0{a} one{'{'#} other{{g, select, x{y} other{z}}}}")
	f.Fuzz(func(t *testing.T, pattern string) {
		s, err := template.Compile(template.Texts{"default": {Title: pattern}})
		if err != nil {
			return
		}
		if text, err := s.Render("pl", map[string]any{"n": 2, "g": "x"}); err == nil && len(text.Title) > 4096 {
			t.Errorf("%d bytes", len(text.Title))
		}
	})
}
