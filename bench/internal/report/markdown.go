package report

import (
	_ "embed"
	"fmt"
	"io"
	"strings"
	"text/template"
)

//go:embed page.md.tmpl
var page string

// Markdown writes the page about the run.
func (r *Report) Markdown(w io.Writer) error {
	t, err := template.New("page").Funcs(template.FuncMap{
		"table": markdownTable,
		"mark":  mark,
		"number": func(v *float64) string {
			return number(v, 2)
		},
	}).Parse(page)
	if err != nil {
		return fmt.Errorf("parse page: %w", err)
	}
	if err := t.Execute(w, r); err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	return nil
}

func mark(v Verdict) string {
	switch {
	case v.Value == nil:
		return "not measured"
	case v.Met:
		return "met"
	}
	return "**missed**"
}

func markdownTable(r Row) string {
	head := r.header()
	lines := []string{"| " + strings.Join(head, " | ") + " |", "|---|" + strings.Repeat("--:|", len(head)-1)}
	for _, result := range r.Results {
		lines = append(lines, "| "+strings.Join(r.line(result), " | ")+" |")
	}
	return strings.Join(lines, "\n")
}
