package jobs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/cli"
)

func (j *Jobs) command(h *extensions.Host) *cobra.Command {
	c := &cobra.Command{
		Use:   "jobs",
		Short: "Show, retry and cancel background jobs, and pause their queues",
		Long: "Show, retry and cancel background jobs, and pause their queues. The commands work while the server runs, which hears\n" +
			"of them within a second, and while it does not.\n\nExit codes: 0 done, 1 it failed, 2 the command line is wrong.",
		Example: "satchel jobs list --state dead\nsatchel jobs retry ID",
	}
	c.AddCommand(j.listCommand(h), j.showCommand(h), j.queuesCommand(h), j.retryCommand(h), j.cancelCommand(h),
		j.pauseCommand(h, "pause", "Begin no more jobs of a queue"), j.pauseCommand(h, "resume", "Begin jobs of a paused queue again"))
	return c
}

func (j *Jobs) listCommand(h *extensions.Host) *cobra.Command {
	var f Filter
	c := &cobra.Command{
		Use: "list", Short: "List jobs, the newest first", Args: cobra.NoArgs, Example: "satchel jobs list --state dead --kind jobs.mail",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.Limit < 1 || f.Limit > 100 {
				return cli.Fail(cli.ExitUsage, "the limit is not understood", "it must be from 1 to 100", "see: satchel jobs list --help")
			}
			page, err := j.list(h.App, f)
			if err != nil {
				return err
			}
			if cli.JSON(cmd) {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(page)
			}
			return printJobs(cmd.OutOrStdout(), page.Jobs)
		},
	}
	c.Flags().StringVar(&f.State, "state", "", "ready, running, scheduled, dead, held, succeeded, cancelled or expired; by default all in the queue")
	c.Flags().StringVar(&f.Kind, "kind", "", "jobs of this kind")
	c.Flags().StringVar(&f.Queue, "queue", "", "jobs of this queue")
	c.Flags().IntVar(&f.Limit, "limit", 25, "how many, at most 100")
	return c
}

func printJobs(out io.Writer, list []View) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "ID\tKIND\tQUEUE\tSTATE\tATTEMPTS\tDUE\tERROR")
	for _, v := range list {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%.80q\n", v.ID, v.Kind, v.Queue, v.State, v.Attempts, v.DueAt.Format(time.RFC3339), v.Error)
	}
	return w.Flush()
}

func (j *Jobs) showCommand(h *extensions.Host) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show a job with what it was given", Args: cobra.ExactArgs(1), Example: "satchel jobs show 1hge3kdfm0ar",
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := j.show(h.App, args[0])
			if err != nil {
				return explained(err)
			}
			e := json.NewEncoder(cmd.OutOrStdout())
			if !cli.JSON(cmd) {
				e.SetIndent("", "  ")
			}
			return e.Encode(v)
		},
	}
}

func (j *Jobs) queuesCommand(h *extensions.Host) *cobra.Command {
	return &cobra.Command{
		Use: "queues", Short: "Show the queues, the one whose oldest job waits longest first", Args: cobra.NoArgs, Example: "satchel jobs queues",
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := j.overview(h.App)
			if err != nil {
				return err
			}
			if cli.JSON(cmd) {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"queues": list})
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "QUEUE\tWORKERS\tOLDEST\tREADY\tRUNNING\tSCHEDULED\tHELD\tDEAD\tPAUSED")
			for _, q := range list {
				paused := ""
				if q.PausedAt != nil {
					paused = q.PausedAt.Format(time.RFC3339)
				}
				_, _ = fmt.Fprintf(w, "%s\t%d\t%.0f s\t%d\t%d\t%d\t%d\t%d\t%s\n", q.Name, q.Workers, q.OldestSeconds, q.Ready, q.Running, q.Scheduled, q.Held, q.Dead, paused)
			}
			return w.Flush()
		},
	}
}

func (j *Jobs) retryCommand(h *extensions.Host) *cobra.Command {
	var payload string
	c := &cobra.Command{
		Use: "retry ID", Short: "Make a dead or scheduled job due now", Args: cobra.ExactArgs(1),
		Example: "satchel jobs retry 1hge3kdfm0ar\nsatchel jobs retry 1hge3kdfm0ar --payload '{\"user\":\"4nx0q2c1v8hzr5t\"}'",
		RunE: func(cmd *cobra.Command, args []string) error {
			var edited json.RawMessage
			if payload != "" {
				edited = json.RawMessage(payload)
			}
			if err := j.Retry(h.App, args[0], edited); err != nil {
				return explained(err)
			}
			return said(cmd, "retried", args[0], "The job %s is due now.\n")
		},
	}
	c.Flags().StringVar(&payload, "payload", "", "JSON that the job is given instead")
	return c
}

func (j *Jobs) cancelCommand(h *extensions.Host) *cobra.Command {
	return &cobra.Command{
		Use: "cancel ID", Short: "End a job that has not ended, also one that is running", Args: cobra.ExactArgs(1), Example: "satchel jobs cancel 1hge3kdfm0ar",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := j.Interrupt(h.App, args[0]); err != nil {
				return explained(err)
			}
			return said(cmd, "cancelled", args[0], "The job %s is cancelled, or will be when the server has ended its work.\n")
		},
	}
}

func (j *Jobs) pauseCommand(h *extensions.Host, verb, short string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " QUEUE", Short: short, Args: cobra.ExactArgs(1), Example: "satchel jobs " + verb + " mail",
		RunE: func(cmd *cobra.Command, args []string) error {
			do := j.Pause
			if verb == "resume" {
				do = j.Resume
			}
			if err := do(h.App, args[0]); err != nil {
				return err
			}
			return said(cmd, verb+"d", args[0], "The queue %s is "+verb+"d.\n")
		},
	}
}

func said(cmd *cobra.Command, key, value, text string) error {
	if cli.JSON(cmd) {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{key: value})
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), text, value)
	return err
}

// explained tells people why a job was left alone.
func explained(err error) error {
	if errors.Is(err, ErrNotFound) || errors.Is(err, api.ErrNotFound) {
		return cli.Fail(cli.ExitError, "there is no such job", "no job in the queue or the history has the id", "satchel jobs list")
	}
	if code, ok := errors.AsType[*extensions.Code](err); ok {
		return cli.Fail(cli.ExitError, "nothing was changed", code.Title, "satchel jobs list shows the states")
	}
	return err
}
