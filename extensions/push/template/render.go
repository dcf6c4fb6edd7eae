package template

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/feature/plural"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
	"golang.org/x/text/number"
)

// forms are the plural categories of Unicode, in the order of plural.Form.
func forms() []string { return []string{"other", "zero", "one", "two", "few", "many"} }

// writer renders one pattern. After an error it writes nothing more.
type writer struct {
	out    strings.Builder
	tag    language.Tag
	values map[string]any
	number float64 // of the plural around
	err    error
}

func render(n node, tag language.Tag, values map[string]any) (string, error) {
	w := &writer{tag: tag, values: values}
	n.write(w)
	return cut(w.out.String()), w.err
}

// cut keeps a text that values have made too long from being refused as a whole.
func cut(text string) string {
	if len(text) <= maxOutput {
		return text
	}
	text = text[:maxOutput-len("…")]
	for !utf8.ValidString(text) {
		text = text[:len(text)-1]
	}
	return text + "…"
}

func (w *writer) put(text string) {
	if w.err == nil && w.out.Len() <= maxOutput {
		w.out.WriteString(text)
	}
}

func (w *writer) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}

func (w *writer) figure(n float64) {
	w.put(message.NewPrinter(w.tag).Sprint(number.Decimal(n, number.MaxFractionDigits(3))))
}

func (l list) write(w *writer) {
	for _, n := range l {
		if w.err != nil || w.out.Len() > maxOutput {
			return
		}
		n.write(w)
	}
}

func (l literal) write(w *writer) { w.put(string(l)) }

func (hash) write(w *writer) { w.figure(w.number) }

func (a argument) write(w *writer) {
	if a.number {
		if n, ok := w.numeric(a.name); ok {
			w.figure(n)
		}
		return
	}
	switch v := w.values[a.name].(type) {
	case string:
		w.put(strings.ToValidUTF8(v, "\uFFFD"))
	case bool:
		w.put(strconv.FormatBool(v))
	case nil:
		w.fail("the value %s is missing", a.name)
	default:
		if n, ok := w.numeric(a.name); ok {
			w.figure(n)
		}
	}
}

// numeric is a value as a number.
func (w *writer) numeric(name string) (float64, bool) {
	n := math.NaN()
	switch v := w.values[name].(type) {
	case float64:
		n = v
	case int:
		n = float64(v)
	case int64:
		n = float64(v)
	case json.Number:
		if f, err := v.Float64(); err == nil {
			n = f
		}
	case nil:
		w.fail("the value %s is missing", name)
		return 0, false
	}
	if math.IsNaN(n) || math.IsInf(n, 0) {
		w.fail("the value %s must be a number", name)
		return 0, false
	}
	return n, true
}

func (c choice) write(w *writer) {
	if c.kind == choose {
		c.pick(w)
		return
	}
	n, ok := w.numeric(c.name)
	if !ok {
		return
	}
	outer := w.number
	defer func() { w.number = outer }()
	w.number = n - c.offset
	if exact := c.exact[n]; exact != nil {
		exact.write(w)
		return
	}
	rules := plural.Cardinal
	if c.kind == ordinal {
		rules = plural.Ordinal
	}
	c.or(form(rules, w.tag, w.number)).write(w)
}

// pick is the case of a select.
func (c choice) pick(w *writer) {
	switch v := w.values[c.name].(type) {
	case string:
		c.or(v).write(w)
	case bool:
		c.or(strconv.FormatBool(v)).write(w)
	case nil:
		w.fail("the value %s is missing", c.name)
	default:
		w.fail("the value %s must be a text or a boolean", c.name)
	}
}

func (c choice) or(name string) node {
	if n := c.cases[name]; n != nil {
		return n
	}
	return c.cases["other"]
}

// form is the plural of a number as it is shown: with at most three decimals, without zeros at the end. The operands are
// those of Unicode's plural rules (UTS 35, part 3, section 5.1.1), which the tables take modulo ten million.
func form(rules *plural.Rules, tag language.Tag, n float64) string {
	const modulus = 10_000_000
	text := strconv.FormatFloat(math.Abs(n), 'f', 3, 64)
	whole, fraction, _ := strings.Cut(text, ".")
	fraction = strings.TrimRight(fraction, "0")
	if len(whole) > 7 {
		whole = whole[len(whole)-7:]
	}
	i, _ := strconv.Atoi(whole) // digits
	if i == 0 && math.Abs(n) >= modulus {
		i = modulus // not zero itself
	}
	f, _ := strconv.Atoi(fraction) // digits, or nothing
	v := len(fraction)
	return forms()[rules.MatchPlural(tag, i, v, v, f, f)]
}
