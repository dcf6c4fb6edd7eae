package push

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/push/credentials"
	"github.com/satchelbase/satchel/extensions/push/sender"
)

// outcome is a result as the command shows it.
type outcome struct {
	Platform sender.Platform `json:"platform"`
	Outcome  string          `json:"outcome"`
	ID       string          `json:"id,omitempty"`
	Status   int             `json:"status,omitempty"`
	Code     string          `json:"code,omitempty"`
	Detail   string          `json:"detail,omitempty"`
	After    float64         `json:"afterSeconds,omitempty"`
	Next     string          `json:"next,omitempty"`
}

func (p *Push) testCommand(h *extensions.Host) *cobra.Command {
	n := &sender.Notification{}
	var sandbox bool
	var app, file string
	var data map[string]string
	c := &cobra.Command{
		Use:   "test [PLATFORM [TOKEN]]",
		Short: "Ask the providers whether the credentials are good, or send a notification",
		Long: "Ask the providers whether the credentials are good; with a token, send a notification to that device. The platform is\n" +
			"apns, fcm, webpush, unifiedpush or expo. The token of Web Push is the subscription, as JSON; it may come from a file.\n\n" +
			"Exit codes: 0 the provider has accepted it, 1 it failed, 2 the command line is wrong, 3 the provider refuses.",
		Example: "satchel push test\nsatchel push test fcm TOKEN --title Hello\nsatchel push test apns TOKEN --sandbox\nsatchel push test webpush --token-file subscription.json",
		Args:    cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := p.open(h); err != nil {
				return notReachable(err)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), asking)
			defer cancel()
			var token string
			switch {
			case len(args) == 2:
				token = args[1]
			case file != "":
				text, err := readFile(file)
				if err != nil {
					return err
				}
				token = strings.TrimSpace(text)
			}
			if token == "" {
				return p.ask(ctx, cmd, h, args)
			}
			n.Data = data
			if n.Silent {
				n.Title, n.Body = "", ""
			}
			if err := n.Check(); err != nil {
				return cli.Fail(cli.ExitUsage, "the notification is not usable", strings.ReplaceAll(err.Error(), "\n", "; "), "see --help")
			}
			target := sender.Target{Token: token, App: app}
			if sandbox {
				target.Environment = sender.Sandbox
			}
			return p.try(ctx, cmd, args, sender.Push{Target: target, Notification: n})
		},
	}
	c.Flags().StringVar(&n.Title, "title", "Hello", "title of the notification")
	c.Flags().StringVar(&n.Body, "body", "This is a test.", "text of the notification")
	c.Flags().BoolVar(&n.Silent, "silent", false, "wake the app and show nothing")
	c.Flags().StringToStringVar(&data, "data", nil, "data for the app, such as route=/posts/1")
	c.Flags().BoolVar(&sandbox, "sandbox", false, "the token is of an app under development (APNs)")
	c.Flags().StringVar(&app, "app", "", "bundle id of the app, if it is not that of the credentials (APNs)")
	c.Flags().StringVar(&file, "token-file", "", "file with the token")
	return c
}

// lend returns a sender, or a failure for people.
func (p *Push) lend(ctx context.Context, platform sender.Platform) (sender.Sender, error) {
	s, err := p.keeper.Sender(ctx, platform)
	if err != nil && strings.Contains(err.Error(), credentials.ErrNotConnected.Error()) {
		return nil, cli.Fail(cli.ExitError, "there is nothing to test", string(platform)+" has no credentials", "satchel push connect --help")
	}
	return s, err
}

// ask checks the credentials of one platform, or of all that are connected.
func (p *Push) ask(ctx context.Context, cmd *cobra.Command, h *extensions.Host, args []string) error {
	var platforms []sender.Platform
	if len(args) > 0 {
		platforms = []sender.Platform{sender.Platform(args[0])}
	} else {
		list, err := credentials.List(h.App)
		if err != nil {
			return err
		}
		for _, e := range list {
			platforms = append(platforms, e.Platform)
		}
		if len(platforms) == 0 {
			return cli.Fail(cli.ExitError, "there is nothing to test", "no provider is connected", "satchel push connect --help")
		}
	}
	results := make([]outcome, len(platforms))
	for i, platform := range platforms {
		s, err := p.lend(ctx, platform)
		if err != nil {
			return err
		}
		results[i] = shown(platform, s.Check(ctx))
	}
	return report(cmd, results)
}

// try sends to one device.
func (p *Push) try(ctx context.Context, cmd *cobra.Command, args []string, push sender.Push) error {
	if len(args) == 0 {
		return cli.Fail(cli.ExitUsage, "the platform is missing", "a token says nothing of its platform", "satchel push test webpush --token-file subscription.json")
	}
	platform := sender.Platform(args[0])
	s, err := p.lend(ctx, platform)
	if err != nil {
		return err
	}
	return report(cmd, []outcome{shown(platform, s.Send(ctx, []sender.Push{push})[0])})
}

func shown(platform sender.Platform, r sender.Result) outcome {
	o := outcome{platform, r.Outcome.String(), r.ID, r.Status, r.Code, r.Detail, r.After.Seconds(), ""}
	if r.Outcome != sender.Accepted {
		o.Next = advice(platform, r)
	}
	return o
}

// report prints the results and fails with the first that is bad.
func report(cmd *cobra.Command, results []outcome) error {
	if cli.JSON(cmd) {
		if err := json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"results": results}); err != nil {
			return err
		}
	}
	var bad *outcome
	for i, r := range results {
		good := r.Outcome == sender.Accepted.String()
		if !good && bad == nil {
			bad = &results[i]
		}
		if !cli.JSON(cmd) {
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), strings.TrimSpace(strings.Join([]string{string(r.Platform), r.Outcome, r.ID, r.Code}, " "))); err != nil {
				return err
			}
		}
	}
	if bad == nil {
		return nil
	}
	return cli.Fail(cli.ExitChecks, string(bad.Platform)+": "+bad.Outcome, strings.Trim(bad.Code+": "+bad.Detail, ": "), bad.Next)
}
