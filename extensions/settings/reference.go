package settings

import (
	"bytes"
	"fmt"
	"io"
	"strings"
)

// general is the heading of the section without a name.
const general = "general"

// Reference writes the documentation of all settings that were read. The format "markdown" is a table for each section
// under a heading whose anchor is the section's name; "env" is the text of a .env.example with every key commented out.
func (s *Settings) Reference(w io.Writer, format string) error {
	var out bytes.Buffer
	switch format {
	case "markdown":
		s.writeMarkdown(&out)
	case "env":
		s.writeEnv(&out)
	default:
		return fmt.Errorf("unknown format %s: use markdown or env", quote(format))
	}
	if _, err := w.Write(out.Bytes()); err != nil {
		return fmt.Errorf("write settings reference: %w", err)
	}
	return nil
}

func (s *Settings) writeMarkdown(out *bytes.Buffer) {
	cell := strings.NewReplacer("|", `\|`, "\n", " ")
	for i, k := range s.keys {
		if i == 0 || s.keys[i-1].Section != k.Section {
			if i > 0 {
				out.WriteString("\n")
			}
			fmt.Fprintf(out, "## %s\n\n| Setting | Type | Default | Description |\n|---|---|---|---|\n", heading(k))
		}
		def, help := "", k.Help
		if k.Default != "" {
			def = "`" + k.Default + "`"
		}
		if k.Secret {
			help = strings.TrimSpace(help + " (secret; or name a file in `" + k.Name + fileSuffix + "`)")
		}
		fmt.Fprintf(out, "| `%s` | %s | %s | %s |\n", k.Name, k.Type, cell.Replace(def), cell.Replace(help))
	}
}

func (s *Settings) writeEnv(out *bytes.Buffer) {
	out.WriteString("# Every setting with its default. Copy this file to .env and uncomment what you change.\n" +
		"# Variables of the environment win over the file.\n")
	for i, k := range s.keys {
		if i == 0 || s.keys[i-1].Section != k.Section {
			fmt.Fprintf(out, "\n# ---- %s ----\n", heading(k))
		}
		out.WriteString("\n")
		for line := range strings.SplitSeq(k.Help, "\n") {
			if line = strings.TrimSpace(line); line != "" {
				fmt.Fprintf(out, "# %s\n", line)
			}
		}
		note := "# Type: " + k.Type
		if k.Secret {
			note += ", secret; or name a file in " + k.Name + fileSuffix
		}
		fmt.Fprintf(out, "%s\n#%s=%s\n", note, k.Name, fileValue(k.Default))
	}
}

// heading is the word that stands over the section of a key.
func heading(k Key) string {
	if k.Section == "" {
		return general
	}
	return k.Section
}

// fileValue writes a value of one line so that ReadFile reads it back.
func fileValue(value string) string {
	if bare, err := parseValue(value); err == nil && bare == value && value == strings.TrimSpace(value) {
		return value
	}
	if !strings.Contains(value, "'") {
		return "'" + value + "'"
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`").Replace(value) + `"`
}
