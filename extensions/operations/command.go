package operations

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions/cli"
)

func (o *Operations) command() *cobra.Command {
	return cli.NoDatabase(&cobra.Command{
		Use:     "operations",
		Short:   "List the privileged operations of the app",
		Long:    "List the privileged operations of the app; with --json as their input and output schemas.\n\nExit codes: 0 done, 1 it failed.",
		Example: "satchel operations\nsatchel operations --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cli.JSON(cmd) {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"operations": o.Descriptions()})
			}
			for _, d := range o.Descriptions() {
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%-5s %-32s %s\n", d.Method, d.Name, d.Summary); err != nil {
					return err
				}
			}
			return nil
		},
	})
}
