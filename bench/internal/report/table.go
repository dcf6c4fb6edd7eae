package report

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// missing stands for a value that was not measured.
const missing = "–"

// header names the columns of a row's table.
func (r *Row) header() []string {
	cells := []string{"lane", "c"}
	for _, m := range r.Columns {
		name, _ := m.title()
		cells = append(cells, name)
		if r.compares(m) {
			cells = append(cells, "× "+Stock, "× "+Limit)
		}
	}
	return cells
}

// line is one result as cells.
func (r *Row) line(result Result) []string {
	connections := missing
	if result.Connections > 0 {
		connections = strconv.Itoa(result.Connections)
	}
	cells := []string{result.Lane, connections}
	for _, m := range r.Columns {
		_, digits := m.title()
		v := r.value(result.Lane, result.Connections, m)
		cells = append(cells, number(v, digits))
		if r.compares(m) {
			for _, other := range []string{Stock, Limit} {
				cells = append(cells, number(ratio(v, r.value(other, result.Connections, m)), 2))
			}
		}
	}
	return cells
}

func (r *Row) compares(m Metric) bool { return slices.Contains(r.Compared, m) }

func number(v *float64, digits int) string {
	if v == nil {
		return missing
	}
	return strconv.FormatFloat(*v, 'f', digits, 64)
}

// String is the verdict in one line.
func (v Verdict) String() string {
	switch {
	case v.Value == nil:
		return v.Text + ": not measured"
	case v.Met:
		return fmt.Sprintf("%s: %.2f, met", v.Text, *v.Value)
	}
	return fmt.Sprintf("%s: %.2f, MISSED", v.Text, *v.Value)
}

// Text writes one row as a person reads it on a terminal.
func (r *Row) Text(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s  %s\n", r.ID, r.Title)
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\t"+strings.Join(r.header(), "\t")+"\t")
	for _, result := range r.Results {
		fmt.Fprintln(t, "\t"+strings.Join(r.line(result), "\t")+"\t")
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	for _, v := range r.Verdicts {
		fmt.Fprintln(&b, "   target", v)
	}
	for _, n := range r.Notes {
		fmt.Fprintln(&b, "   note", n)
	}
	if r.Void {
		fmt.Fprintf(&b, "   VOID: others kept %.0f %% of a processor busy\n", 100*r.ForeignCPU)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
