package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/alkdev/hub/internal/migrate"
	"github.com/alkdev/hub/internal/postgres"
)

func migrateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Args:  cobra.NoArgs,
		RunE:  showHelp,
		Use:   "migrate",
		Short: "Change the schema's version by hand",
		Long: `Change the schema's version by hand. "hub serve" applies what is missing by itself.

The database is the one of HUB_MIGRATE_URL, HUB_DATABASE_URL or DATABASE_URL, else hub's own in the data directory, which must
not be in use then.`,
	}
	dataDir := dataDirFlag(cmd)
	cmd.PersistentFlags().AddFlag(cmd.Flags().Lookup("data-dir"))

	run := func(fn func(cmd *cobra.Command, url string, args []string) error) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, args []string) error {
			return asOwner(cmd, dataDir, alone, func(url string) error { return fn(cmd, url, args) })
		}
	}
	report := func(ctx context.Context, cmd *cobra.Command, url string) error {
		at, err := migrate.Version(ctx, url)
		if err == nil {
			fmt.Fprintf(cmd.OutOrStdout(), "The schema is at version %d; this hub's newest is %d.\n", at, migrate.Latest())
		}
		return err
	}
	cmd.AddCommand(
		&cobra.Command{Use: "version", Short: "Show the schema's version", Args: cobra.NoArgs,
			RunE: run(func(cmd *cobra.Command, url string, _ []string) error { return report(cmd.Context(), cmd, url) })},
		&cobra.Command{Use: "up", Short: "Apply all migrations that are missing", Args: cobra.NoArgs,
			RunE: run(func(cmd *cobra.Command, url string, _ []string) error {
				log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
				return errors.Join(migrate.Up(cmd.Context(), url, log), report(cmd.Context(), cmd, url))
			})},
		&cobra.Command{Use: "down N", Short: "Take back the newest N migrations, and the data in their tables", Args: cobra.ExactArgs(1),
			RunE: run(func(cmd *cobra.Command, url string, args []string) error {
				n, err := strconv.Atoi(args[0])
				if err != nil || n < 1 {
					return fmt.Errorf("%q is no number of migrations", args[0])
				}
				return errors.Join(migrate.Down(cmd.Context(), url, n), report(cmd.Context(), cmd, url))
			})},
		&cobra.Command{Use: "force VERSION", Short: "Say that the schema is at VERSION, after it was mended by hand", Args: cobra.ExactArgs(1),
			RunE: run(func(cmd *cobra.Command, url string, args []string) error {
				n, err := strconv.ParseInt(args[0], 10, 64)
				if err != nil || n < 0 {
					return fmt.Errorf("%q is no version", args[0])
				}
				return errors.Join(migrate.Force(cmd.Context(), url, n), report(cmd.Context(), cmd, url))
			})},
	)
	return cmd
}

// Whether a command can share hub's own database with a hub that serves.
const (
	alone  = false
	shared = true
)

// asOwner gives fn the owner's URL of the database: of the environment's, else of hub's own in the data directory, which is
// started for it unless a hub runs it.
func asOwner(cmd *cobra.Command, dataDir func() (string, bool, error), share bool, fn func(url string) error) error {
	if _, url := databaseURLs(); url != "" {
		return fn(url)
	}
	dir, _, err := dataDir()
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	ended := make(chan error, 1)
	database, err := startOwnDatabase(cmd.Context(), log, postgres.Config{DataDir: dir, Log: log, Holder: cmd.CommandPath()}, ended)
	if share && errors.As(err, new(*postgres.InUseError)) {
		url, running := postgres.RunningURL(dir, "hub", "hub")
		if running != nil {
			return errors.Join(err, running)
		}
		return fn(url)
	}
	if err != nil {
		return err
	}
	defer database.stop()
	return fn(database.url("hub"))
}
