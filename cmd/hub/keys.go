package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/alkdev/hub/gen/client"
	"github.com/alkdev/hub/internal/keyring"
)

// Where the keys are --------------------------------------------------------------------------------------------------

// keySource is where the encryption keys come from: the environment, a file, or nowhere.
type keySource struct {
	text string // of HUB_ENCRYPTION_KEYS
	file string // HUB_ENCRYPTION_KEYS_FILE, or encryption-keys in the data directory
	make bool   // the file, where it is not there yet
}

// findKeys looks where the keys are. A hub that runs its own PostgreSQL makes its first key itself, for it is the only one that
// reads that database; several hubs of one database must be given the same.
func findKeys(dir string, own bool) (keySource, error) {
	source := keySource{text: os.Getenv("HUB_ENCRYPTION_KEYS"), file: os.Getenv("HUB_ENCRYPTION_KEYS_FILE")}
	if source.text != "" && source.file != "" {
		return source, errors.New("give HUB_ENCRYPTION_KEYS or HUB_ENCRYPTION_KEYS_FILE, not both")
	}
	if source.text == "" && source.file == "" && own {
		source.file, source.make = filepath.Join(dir, "encryption-keys"), true
	}
	return source, nil
}

// load reads the keys; nil where there are none.
func (s keySource) load() (*keyring.Ring, error) {
	switch {
	case s.text != "":
		ring, err := keyring.Parse(s.text)
		if err != nil {
			return nil, fmt.Errorf("HUB_ENCRYPTION_KEYS: %w", err)
		}
		return ring, nil
	case s.file != "":
		text, err := os.ReadFile(s.file)
		if errors.Is(err, fs.ErrNotExist) && s.make {
			text = []byte("# Encrypts the secrets in this directory's database. Without it they are lost: keep a copy somewhere else.\n" + keyring.Generate(1) + "\n")
			if err = os.MkdirAll(filepath.Dir(s.file), 0o700); err == nil {
				err = writeDurably(s.file+".new", s.file, string(text))
			}
		}
		if err != nil {
			return nil, fmt.Errorf("the encryption keys: %w", err)
		}
		ring, err := keyring.Parse(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.file, err)
		}
		return ring, nil
	default:
		return nil, nil
	}
}

// reloadOnHangup loads the file anew at each SIGHUP, until ctx ends or the function that it returns is called. Keys that cannot be
// used leave those before in use.
func (s keySource) reloadOnHangup(ctx context.Context, log *slog.Logger, use func(context.Context, *keyring.Ring) error) (stop func()) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangup:
				if s.file == "" {
					log.Warn("SIGHUP: there is no file of encryption keys to load anew; HUB_ENCRYPTION_KEYS is read at the start only")
					continue
				}
				ring, err := s.load()
				if err == nil {
					err = use(ctx, ring)
				}
				if err != nil {
					log.Error("SIGHUP: the encryption keys stay as they were", "cause", err)
				}
			}
		}
	}()
	return func() { signal.Stop(hangup) }
}

// The commands ----------------------------------------------------------------------------------------------------------

func keysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Args:  cobra.NoArgs,
		RunE:  showHelp,
		Use:   "keys",
		Short: "Make, watch and change the keys that encrypt secrets",
		Long: `Make, watch and change the keys that encrypt secrets.

To change keys without anybody noticing:

  1. hub keys generate, and add the key at the END of the list of every replica; load the lists anew (SIGHUP, or a restart).
  2. Move it to the FRONT everywhere, and load again: new values are now under it.
  3. hub keys rotate: all older ones come under it, too.
  4. When hub keys status shows no secrets under the old key, take it out of the lists, load again, and hub keys retire it.`,
	}
	cmd.AddCommand(keysGenerateCommand(), keysStatusCommand(), keysRotateCommand(), keysRetireCommand())
	return cmd
}

func keysGenerateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "generate",
		Short: "Make a key",
		Long: `Make a key, as HUB_ENCRYPTION_KEYS or a line of HUB_ENCRYPTION_KEYS_FILE holds it, and write it to standard output. Its version is the
one behind the highest of the keys that are configured here.`,
		Example: "  hub keys generate >> encryption-keys",
		Args:    cobra.NoArgs,
	}
	dataDir := dataDirFlag(cmd)
	version := cmd.Flags().Int32("version", 0, "the key's version (default: the next one)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !cmd.Flags().Changed("version") {
			dir, _, err := dataDir()
			if err != nil {
				return err
			}
			url, _ := databaseURLs()
			source, err := findKeys(dir, url == "")
			if err != nil {
				return err
			}
			source.make = false
			ring, err := source.load()
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("cannot tell the next version (give --version): %w", err)
			}
			*version = 1
			for _, key := range ring.Keys() {
				*version = max(*version, key.Version+1)
			}
		}
		if *version < 1 {
			return errors.New("--version: must be above zero")
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), keyring.Generate(*version))
		return err
	}
	return cmd
}

func keysStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the keys, and how many secrets are under each",
		Args:  cobra.NoArgs,
	}
	connect := connectFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		hub, err := connect()
		if err != nil {
			return err
		}
		list, err := hub.ListEncryptionKeysWithResponse(cmd.Context())
		if err != nil {
			return err
		}
		if list.JSON200 == nil {
			return refusal(list.Body, list.Status())
		}
		table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "KEY\tFINGERPRINT\tSECRETS\t")
		for _, key := range list.JSON200.Items {
			fmt.Fprintf(table, "v%d\t%s\t%d\t%s\n", key.Version, key.Fingerprint[:16], key.Secrets, keyState(key))
		}
		if len(list.JSON200.Items) == 0 {
			fmt.Fprintln(table, "none\t\t\tsecrets cannot be put: set HUB_ENCRYPTION_KEYS (hub keys generate)")
		}
		return table.Flush()
	}
	return cmd
}

func keyState(key client.EncryptionKey) string {
	switch {
	case key.Primary:
		return "encrypts"
	case !key.Held && key.Secrets > 0:
		return "MISSING: these secrets cannot be revealed"
	case !key.Held:
		return "retired: can be forgotten (hub keys retire)"
	case key.Secrets > 0:
		return "decrypts; to be rotated (hub keys rotate)"
	default:
		return "unused: can be taken out of the configuration"
	}
}

func keysRotateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Encrypt all secrets with the key that is first in the list",
		Long: `Encrypt all secrets with the key that is first in the list, and watch until it is done. The servers do the work: it goes on when this
command is interrupted, and when servers are killed. Run again, the command joins the rotation that is running.`,
		Args: cobra.NoArgs,
	}
	connect := connectFlags(cmd)
	quiet := cmd.Flags().BoolP("quiet", "q", false, "no progress bar; only the summary")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		hub, err := connect()
		if err != nil {
			return err
		}
		started, err := hub.StartSecretRotationWithResponse(cmd.Context(), &client.StartSecretRotationParams{})
		if err != nil {
			return err
		}
		if started.JSON202 == nil {
			return refusal(started.Body, started.Status())
		}
		return watchRotation(cmd, hub, *started.JSON202, *quiet)
	}
	return cmd
}

func watchRotation(cmd *cobra.Command, hub *client.ClientWithResponses, rotation client.SecretRotation, quiet bool) error {
	out := cmd.ErrOrStderr()
	if quiet || !term.IsTerminal(int(os.Stderr.Fd())) {
		out = io.Discard
	}
	bar := progressbar.NewOptions64(rotation.Total, progressbar.OptionSetWriter(out), progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString("secrets"),
		progressbar.OptionSetDescription(fmt.Sprintf("to v%d", rotation.TargetVersion)), progressbar.OptionSetWidth(30), progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(65e6))
	for rotation.Status == client.SecretRotationStatusRunning {
		_ = bar.Set64(min(rotation.Total, max(0, rotation.Total-rotation.Remaining)))
		select {
		case <-cmd.Context().Done():
			_ = bar.Clear()
			fmt.Fprintln(cmd.ErrOrStderr(), "The rotation goes on; `hub keys rotate` watches it again.")
			return cmd.Context().Err()
		case <-time.After(300 * time.Millisecond):
		}
		got, err := hub.GetSecretRotationWithResponse(cmd.Context(), rotation.Id)
		if cmd.Context().Err() != nil {
			continue
		}
		if err != nil {
			return err
		}
		if got.JSON200 == nil {
			return refusal(got.Body, got.Status())
		}
		rotation = *got.JSON200
	}
	_ = bar.Finish()
	if rotation.Status == client.SecretRotationStatusSuperseded {
		return errors.New("a rotation to another key was started meanwhile")
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%d secrets were brought under v%d.\n", rotation.Rotated, rotation.TargetVersion)
	if rotation.Failed > 0 {
		return fmt.Errorf("%d secrets could not be decrypted and stay as they are: their key is missing, or they are damaged (hub's log names them)", rotation.Failed)
	}
	return nil
}

func keysRetireCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "retire VERSION",
		Short: "Forget a key that encrypts nothing any more, and is in no list",
		Args:  cobra.ExactArgs(1),
	}
	connect := connectFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		version, err := strconv.ParseInt(strings.TrimPrefix(args[0], "v"), 10, 32)
		if err != nil || version < 1 {
			return fmt.Errorf("%q is no version such as v1", args[0])
		}
		hub, err := connect()
		if err != nil {
			return err
		}
		deleted, err := hub.DeleteEncryptionKeyWithResponse(cmd.Context(), int32(version), &client.DeleteEncryptionKeyParams{})
		if err != nil {
			return err
		}
		if deleted.StatusCode() != 204 {
			return refusal(deleted.Body, deleted.Status())
		}
		fmt.Fprintf(cmd.OutOrStdout(), "v%d is forgotten.\n", version)
		return nil
	}
	return cmd
}
