// Package console lets operators look after jobs, by operations and on the command line.
package console

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
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/jobs/table"
)

func command(j *jobs.Jobs, h *extensions.Host) *cobra.Command {
	c := &cobra.Command{
		Use:   "jobs",
		Short: "Show, retry and cancel background jobs, and pause their queues",
		Long: "Show, retry and cancel background jobs, and pause their queues. The commands work while the server runs, which hears\n" +
			"of them within a second, and while it does not.\n\nExit codes: 0 done, 1 it failed, 2 the command line is wrong.",
		Example: "satchel jobs list --state dead\nsatchel jobs retry ID",
	}
	c.AddCommand(listCommand(j, h), showCommand(j, h), queuesCommand(j, h), retryCommand(j, h), cancelCommand(j, h),
		pauseCommand(j, h, "pause", "Begin no more jobs of a queue"), pauseCommand(j, h, "resume", "Begin jobs of a paused queue again"))
	return c
}

func listCommand(j *jobs.Jobs, h *extensions.Host) *cobra.Command {
	var f table.Filter
	c := &cobra.Command{
		Use: "list", Short: "List jobs, the newest first", Args: cobra.NoArgs, Example: "satchel jobs list --state dead --kind jobs.mail",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.Limit < 1 || f.Limit > 100 {
				return cli.Fail(cli.ExitUsage, "the limit is not understood", "it must be from 1 to 100", "see: satchel jobs list --help")
			}
			page, err := table.List(h.App, f)
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

func printJobs(out io.Writer, list []table.View) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "ID\tKIND\tQUEUE\tSTATE\tATTEMPTS\tDUE\tERROR")
	for _, v := range list {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%.80q\n", v.ID, v.Kind, v.Queue, v.State, v.Attempts, v.DueAt.Format(time.RFC3339), v.Error)
	}
	return w.Flush()
}

func showCommand(j *jobs.Jobs, h *extensions.Host) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show a job with what it was given", Args: cobra.ExactArgs(1), Example: "satchel jobs show 1hge3kdfm0ar",
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := table.Show(h.App, args[0])
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

func queuesCommand(j *jobs.Jobs, h *extensions.Host) *cobra.Command {
	return &cobra.Command{
		Use: "queues", Short: "Show the queues, the one whose oldest job waits longest first", Args: cobra.NoArgs, Example: "satchel jobs queues",
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := overview(h.App, j)
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

const (
	// atOnce is how many dead jobs one transaction makes due, so that others do not wait for it, and pause lets them write
	// in between.
	atOnce    = 500
	betweenIt = 20 * time.Millisecond
)

func retryCommand(j *jobs.Jobs, h *extensions.Host) *cobra.Command {
	var payload, kind, state string
	var limit int
	c := &cobra.Command{
		Use: "retry [ID]", Short: "Make a dead or scheduled job due now, or the dead ones of a kind", Args: cobra.MaximumNArgs(1),
		Example: "satchel jobs retry 1hge3kdfm0ar\nsatchel jobs retry 1hge3kdfm0ar --payload '{\"user\":\"4nx0q2c1v8hzr5t\"}'\n" +
			"satchel jobs retry --kind jobs.mail --state dead --limit 5000",
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case kind == "" && state == "" && len(args) == 1:
			case kind != "" && state == "dead" && len(args) == 0 && payload == "" && limit > 0:
				return retryKind(cmd, j, h, kind, limit)
			default:
				return cli.Fail(cli.ExitUsage, "it is not clear what to retry", "name a job, or the dead ones of a kind, which are given what they were given", "satchel jobs retry --kind jobs.mail --state dead")
			}
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
	c.Flags().StringVar(&kind, "kind", "", "all jobs of this kind, with --state dead")
	c.Flags().StringVar(&state, "state", "", "dead, with --kind")
	c.Flags().IntVar(&limit, "limit", 1000, "how many jobs of the kind at most, those first that died first")
	return c
}

// retryKind makes the dead jobs of a kind due, some hundred in a transaction.
func retryKind(cmd *cobra.Command, j *jobs.Jobs, h *extensions.Host, kind string, limit int) error {
	var sum table.Revived
	for {
		r, err := retryDead(h.App, j, kind, min(limit-sum.Retried, atOnce))
		if err != nil {
			return err
		}
		done := r.Retried
		r.Retried += sum.Retried
		if sum = r; done == 0 || sum.Retried >= limit || sum.Dead == sum.Blocked {
			break
		}
		select {
		case <-cmd.Context().Done():
			return cmd.Context().Err()
		case <-time.After(betweenIt):
		}
	}
	if sum.Retried == 0 && sum.Dead == 0 {
		return cli.Fail(cli.ExitError, "nothing was changed", "no job of the kind "+kind+" is dead", "satchel jobs list --state dead")
	}
	if cli.JSON(cmd) {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(sum)
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%d jobs of the kind %s are due now, and %d are dead still", sum.Retried, kind, sum.Dead)
	if err == nil && sum.Blocked > 0 {
		_, err = fmt.Fprintf(cmd.OutOrStdout(), ", %d of these because another job has their key", sum.Blocked)
	}
	if err == nil {
		_, err = fmt.Fprintln(cmd.OutOrStdout(), ".")
	}
	return err
}

func cancelCommand(j *jobs.Jobs, h *extensions.Host) *cobra.Command {
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

func pauseCommand(j *jobs.Jobs, h *extensions.Host, verb, short string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " QUEUE", Short: short, Args: cobra.ExactArgs(1), Example: "satchel jobs " + verb + " mail",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := pause(h.App, j, args[0], verb == "pause"); err != nil {
				return explained(err)
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
	if errors.Is(err, jobs.ErrNotFound) || errors.Is(err, api.ErrNotFound) {
		return cli.Fail(cli.ExitError, "there is no such job", "no job in the queue or the history has the id", "satchel jobs list")
	}
	if p, ok := errors.AsType[*api.Problem](err); ok && errors.Is(err, ErrNoQueue) {
		return cli.Fail(cli.ExitUsage, "there is no such queue", p.Detail, "satchel jobs queues")
	}
	if code, ok := errors.AsType[*extensions.Code](err); ok {
		return cli.Fail(cli.ExitError, "nothing was changed", code.Title, "satchel jobs list shows the states")
	}
	return err
}

// Extend adds the command, the check, the code and the metrics to the extension of the queue.
func Extend(x extensions.Extension, j *jobs.Jobs) extensions.Extension {
	x.Commands = func(h *extensions.Host) []*cobra.Command { return []*cobra.Command{command(j, h)} }
	x.Checks = append(x.Checks, extensions.Check{Name: "jobs", Run: check})
	x.Codes = append(x.Codes, ErrNoQueue)
	x.Metrics = append(x.Metrics, metrics(j)...)
	return x
}
