package cli

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/pocketbase/pocketbase"
	"github.com/spf13/cobra"
)

const noDatabaseKey = "satchel.noDatabase"

// NoDatabase marks a command, and with it its subcommands, as one that must not open or create the data folder.
func NoDatabase(cmd *cobra.Command) *cobra.Command {
	if cmd.Annotations == nil {
		cmd.Annotations = map[string]string{}
	}
	cmd.Annotations[noDatabaseKey] = "true"
	return cmd
}

// JSON reports whether the caller of cmd wants machine-readable output.
func JSON(cmd *cobra.Command) bool {
	on, err := cmd.Flags().GetBool("json")
	return err == nil && on
}

// Run executes the command line and returns the exit code. PocketBase opens the database before any command that it
// knows; commands marked with [NoDatabase], help and mistakes on the command line go around that. settingsErr, what is
// wrong with the settings, stops every command that needs the database.
func Run(pb *pocketbase.PocketBase, args []string, settingsErr error) int {
	root := pb.RootCmd
	root.SetHelpCommand(nil) // PocketBase hides it
	root.InitDefaultHelpCmd()
	prepare(root)
	asJSON := slices.Contains(args, "--json")

	cmd, _, err := root.Find(args)
	switch {
	case err != nil:
		err = usage(root, err)
	case !needsDatabase(cmd) || slices.ContainsFunc(args, isHelp):
		err = root.Execute()
	case settingsErr != nil:
		err = invalid(settingsErr)
	default:
		err = explain(pb, checkLine(cmd, args, pb.Execute))
	}
	return Report(os.Stderr, err, asJSON)
}

// checkLine refuses wrong flags and arguments before anything is opened.
func checkLine(cmd *cobra.Command, args []string, run func() error) error {
	// Find strips the flags that are known to the command; parse what is left as cobra will.
	_, rest, err := cmd.Root().Find(args)
	if err != nil {
		return usage(cmd, err)
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return usage(cmd, err)
	}
	if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
		return err
	}
	return run()
}

func isHelp(arg string) bool {
	return arg == "-h" || arg == "--help" || arg == "--version" || arg == "-v"
}

func needsDatabase(cmd *cobra.Command) bool {
	if !cmd.HasParent() {
		return false
	}
	for c := cmd; c != nil; c = c.Parent() {
		if c.Annotations[noDatabaseKey] != "" || c.Name() == "help" {
			return false
		}
	}
	return cmd.Runnable() && !onlyGroups(cmd)
}

func invalid(err error) error {
	return Fail(ExitUsage, "the settings are not valid", err.Error(), "satchel config reference lists them all")
}

// Settings wraps the command that shows the settings: what is wrong with them reads as it does at the start.
func Settings(cmd *cobra.Command) *cobra.Command {
	for _, c := range cmd.Commands() {
		run := c.RunE
		if c.Name() == "reference" { // fails for other reasons only
			continue
		}
		c.RunE = func(c *cobra.Command, args []string) error {
			if err := run(c, args); err != nil {
				return invalid(err)
			}
			return nil
		}
	}
	return NoDatabase(cmd)
}

const groupKey = "satchel.group"

func onlyGroups(cmd *cobra.Command) bool { return cmd.Annotations[groupKey] != "" }

// prepare gives every command the program's manners: wrong flags and arguments are usage errors, and a command that
// only groups others shows its help alone but refuses an unknown subcommand.
func prepare(cmd *cobra.Command) {
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SuggestionsMinimumDistance = 2 // cobra's default, which it sets too late for us
	cmd.FParseErrWhitelist = cobra.FParseErrWhitelist{}
	cmd.SetFlagErrorFunc(usage)
	if cmd.HasSubCommands() && !cmd.Runnable() {
		if cmd.Annotations == nil {
			cmd.Annotations = map[string]string{}
		}
		cmd.Annotations[groupKey] = "true"
		cmd.Args = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			text := fmt.Sprintf("unknown command %q for %q", args[0], c.CommandPath())
			if near := c.SuggestionsFor(args[0]); len(near) > 0 {
				text += "\n\n" + suggestion + "\n" + strings.Join(near, "\n")
			}
			return errors.New(text)
		}
		cmd.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	}
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usage(c, err)
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		prepare(sub)
	}
}

// suggestion is how cobra begins the list of what may have been meant.
const suggestion = "Did you mean this?"

func usage(cmd *cobra.Command, err error) error {
	if _, ok := errors.AsType[*Failure](err); ok {
		return err
	}
	what, _, _ := strings.Cut(err.Error(), "\n\n")
	next := "see: " + cmd.CommandPath() + " --help"
	if _, near, found := strings.Cut(err.Error(), suggestion); found {
		next = "did you mean: " + strings.Join(strings.Fields(near), ", ")
	}
	return Fail(ExitUsage, "the command line is not understood", what, next)
}

// explain turns what commonly stops a server into words an operator can act on.
func explain(pb *pocketbase.PocketBase, err error) error {
	var f *Failure
	if err == nil || errors.As(err, &f) {
		return err
	}
	text := err.Error()
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return Fail(ExitError, "the server cannot listen", text, "stop the other program, or choose a free port: satchel serve --http 127.0.0.1:8091")
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ENOENT),
		strings.Contains(text, "readonly database"), strings.Contains(text, "unable to open database file"):
		return Fail(ExitError, "the data folder "+pb.DataDir()+" cannot be used", text, "give this user write access, or choose another folder with --dir; satchel doctor shows more")
	case strings.Contains(text, "not a database"), strings.Contains(text, "malformed"):
		return Fail(ExitError, "the database in "+pb.DataDir()+" is damaged", text, "run satchel doctor, then restore a backup")
	default:
		return err
	}
}
