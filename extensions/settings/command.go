package settings

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// Command is `config print|check|reference`. It works on what was read before it runs and opens nothing. The error of
// `check` and `print` is that of Err; printing it is left to the caller.
func (s *Settings) Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show, check and document the settings",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(s.printCommand(), s.checkCommand(), s.referenceCommand())
	return cmd
}

func (s *Settings) printCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:          "print",
		Short:        "Print the effective settings and where they come from; secrets are masked",
		Args:         cobra.NoArgs,
		SilenceUsage: true,
	}
	asJSON := cmd.Flags().Bool("json", false, "print a JSON array")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		write := s.writeTable
		if *asJSON {
			write = s.writeJSON
		}
		if err := write(cmd.OutOrStdout()); err != nil {
			return fmt.Errorf("print settings: %w", err)
		}
		return s.Err()
	}
	return cmd
}

func (s *Settings) checkCommand() *cobra.Command {
	return &cobra.Command{
		Use:          "check",
		Short:        "Report every problem of the settings at once",
		Args:         cobra.NoArgs,
		SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, warning := range s.warnings {
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), "warning:", warning); err != nil {
					return fmt.Errorf("print warning: %w", err)
				}
			}
			if err := s.Err(); err != nil {
				return err
			}
			changed := 0
			for _, k := range s.keys {
				if k.Source != FromDefault {
					changed++
				}
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "ok: %d settings, %d set\n", len(s.keys), changed)
			return err
		},
	}
}

func (s *Settings) referenceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:          "reference",
		Short:        "Print the documentation of every setting",
		Args:         cobra.NoArgs,
		SilenceUsage: true,
	}
	format := cmd.Flags().String("format", "markdown", "markdown, or env for the text of .env.example")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return s.Reference(cmd.OutOrStdout(), *format)
	}
	return cmd
}

func (s *Settings) writeTable(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if _, err := fmt.Fprintln(table, "SETTING\tVALUE\tSOURCE"); err != nil {
		return err
	}
	for _, k := range s.keys {
		value := oneLine(k.Value)
		if value == "" {
			value = "-"
		}
		if _, err := fmt.Fprintf(table, "%s\t%s\t%s\n", k.Name, value, k.Source); err != nil {
			return err
		}
	}
	return table.Flush()
}

func (s *Settings) writeJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(s.Keys())
}
