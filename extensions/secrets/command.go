package secrets

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/pocketbase/dbx"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/internal/secret"
)

func command(h *extensions.Host, cfg Config) *cobra.Command {
	c := &cobra.Command{
		Use: "secrets", Short: "Make, check and change the master key",
		Long: "Make, check and change the master key, which seals what a copy of the database must not reveal.\n\n" +
			"Exit codes: 0 done, 1 it failed, 2 wrong usage, 3 key and data do not match or a key is missing.",
		Example: "satchel secrets generate --out satchel.key\nsatchel secrets check\nsatchel secrets rewrap",
	}
	c.AddCommand(generateCommand(h), checkCommand(h, cfg), rewrapCommand(h, cfg))
	return c
}

func generateCommand(h *extensions.Host) *cobra.Command {
	c := &cobra.Command{
		Use: "generate", Short: "Make a master key and print it, or write it to a file", Args: cobra.NoArgs,
		Example: "satchel secrets generate\nsatchel secrets generate --out /var/lib/satchel/satchel.key",
	}
	out := c.Flags().String("out", "", "write a new file for this user alone instead of printing the key; never replaces one")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		key := secret.NewKey()
		if *out == "" {
			return answer(cmd, secret.FormatKey(key), map[string]string{"key": secret.FormatKey(key)})
		}
		if err := (source{dataDir: h.App.DataDir()}).outside(*out); err != nil {
			return err
		}
		err := secret.WriteKeyFile(*out, key)
		if errors.Is(err, fs.ErrExist) {
			return cli.Fail(cli.ExitUsage, *out+" exists already", "a key is never replaced: what is sealed under it would be lost",
				"name another file, or move this one away and see: satchel secrets rewrap --help")
		}
		if err != nil {
			return cli.Fail(cli.ExitError, "the key file cannot be written", err.Error(), "choose another place with --out")
		}
		return answer(cmd, *out, map[string]string{"path": *out})
	}
	return cli.NoDatabase(c)
}

func checkCommand(h *extensions.Host, cfg Config) *cobra.Command {
	return cli.NoDatabase(&cobra.Command{
		Use: "check", Short: "Check that the master key opens the data; changes nothing", Args: cobra.NoArgs,
		Example: "satchel secrets check",
		RunE: func(cmd *cobra.Command, _ []string) error {
			sealed, err := storedRoot(cmd.Context(), h)
			if err != nil {
				return cli.Fail(cli.ExitError, "the database cannot be read", err.Error(), "satchel doctor")
			}
			message, err := newSource(cfg, h).examine(sealed, h.Production)
			if err != nil {
				return err
			}
			return answer(cmd, message, map[string]string{"status": "ok", "message": message})
		},
	})
}

func rewrapCommand(h *extensions.Host, cfg Config) *cobra.Command {
	return &cobra.Command{
		Use: "rewrap", Short: "Seal the data under a new master key", Args: cobra.NoArgs,
		Long: "Seal the data under a new master key. The old key is read from SATCHEL_MASTER_KEY_PREVIOUS, or from the file that\n" +
			"SATCHEL_MASTER_KEY_PREVIOUS_FILE names; the new one from where the server will find it. A running server goes on\n" +
			"and needs the new key at its next start. Older backups keep needing the old key.",
		Example: "mv satchel.key old.key\nsatchel secrets generate --out satchel.key\nSATCHEL_MASTER_KEY_PREVIOUS_FILE=old.key satchel secrets rewrap",
		RunE: func(cmd *cobra.Command, _ []string) error {
			done, err := rewrap(cmd.Context(), h, newSource(cfg, h))
			if err != nil {
				return err
			}
			text := map[string]string{
				"rewrapped": "The data is sealed under the new master key. The old key opens nothing but older backups.",
				"unchanged": "The data is sealed under this master key already.",
				"absent":    "Nothing is sealed yet; the first start uses this master key.",
			}[done]
			return answer(cmd, text, map[string]string{"status": done})
		},
	}
}

// rewrap seals the root key under the present master key and says what it found: rewrapped, unchanged or absent.
func rewrap(ctx context.Context, h *extensions.Host, s source) (string, error) {
	sealed, err := readRoot(ctx, h.App.ConcurrentDB())
	if err != nil {
		return "", err
	}
	master, from, err := s.find()
	if errors.Is(err, errNoKey) {
		return "", s.missing(sealed != "")
	}
	if err != nil {
		return "", err
	}
	if sealed == "" {
		return "absent", nil
	}
	_, err = secret.OpenRoot(master, sealed)
	switch {
	case err == nil:
		return "unchanged", nil
	case !errors.Is(err, secret.ErrOtherKey):
		return "", s.mismatch(from, err)
	case s.cfg.Previous == "":
		return "", cli.Fail(cli.ExitUsage, "the old master key is missing", "the data is sealed under another key than the one from "+from,
			"set SATCHEL_MASTER_KEY_PREVIOUS or SATCHEL_MASTER_KEY_PREVIOUS_FILE to the old key")
	}
	previous, err := secret.ParseKey(string(s.cfg.Previous))
	if err != nil {
		return "", unusable(err, "set SATCHEL_MASTER_KEY_PREVIOUS to the old key")
	}
	root, err := secret.OpenRoot(previous, sealed)
	if err != nil {
		return "", s.mismatch("SATCHEL_MASTER_KEY_PREVIOUS", err)
	}
	return "rewrapped", replaceRoot(ctx, h.App.NonconcurrentDB(), sealed, root, master)
}

// replaceRoot changes the one row if it still is what was opened.
func replaceRoot(ctx context.Context, db dbx.Builder, old string, root, master []byte) error {
	sealed, err := secret.SealRoot(master, root)
	if err != nil {
		return err
	}
	result, err := db.NewQuery("UPDATE secrets_keys SET sealed = {:sealed} WHERE id = 'root' AND sealed = {:old}").
		Bind(dbx.Params{"sealed": sealed, "old": old}).WithContext(ctx).Execute()
	if err != nil {
		return fmt.Errorf("store root key: %w", err)
	}
	if n, err := result.RowsAffected(); err != nil || n != 1 {
		return fmt.Errorf("store root key: %w", errors.Join(err, errChanged))
	}
	return nil
}

var errChanged = errors.New("another process changed it meanwhile; run the command again")

// answer prints one line for people, or the fields with --json.
func answer(cmd *cobra.Command, line string, fields map[string]string) error {
	if cli.JSON(cmd) {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(fields)
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), line)
	return err
}
