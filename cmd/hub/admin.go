package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"github.com/alkdev/hub/internal/apikey"
	"github.com/alkdev/hub/internal/migrate"
)

func adminCommand() *cobra.Command {
	cmd := &cobra.Command{
		Args:  cobra.NoArgs,
		RunE:  showHelp,
		Use:   "admin",
		Short: "The operator's way in: accounts and keys without a key",
		Long: `The operator's way in, for whom the database trusts: the first account, a lost admin key, an account that must stop now.

The database is the one of HUB_MIGRATE_URL, HUB_DATABASE_URL or DATABASE_URL, else hub's own in the data directory, also while a
hub serves from it. All of this is on record in the audit log, with the source "admin".

ACCOUNT is an account's id, e-mail address or, where only one has it, display name.`,
		Example: `  hub admin accounts
  hub admin create --name "Ada Lovelace" --email ada@example.com
  hub admin key ada@example.com
  hub admin deactivate ada@example.com`,
	}
	dataDir := dataDirFlag(cmd)
	cmd.PersistentFlags().AddFlag(cmd.Flags().Lookup("data-dir"))

	// run gives fn a connection as the schema's owner, to a schema that is this program's.
	run := func(fn func(ctx context.Context, cmd *cobra.Command, conn *pgx.Conn, args []string) error) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, args []string) error {
			return asOwner(cmd, dataDir, shared, func(url string) error {
				ctx := cmd.Context()
				conn, err := pgx.Connect(ctx, url)
				if err != nil {
					return err
				}
				defer conn.Close(context.WithoutCancel(ctx))
				if err := migrate.Check(ctx, conn); err != nil {
					return err
				}
				return fn(ctx, cmd, conn, args)
			})
		}
	}

	create := &cobra.Command{Use: "create", Short: "Make a platform admin, with a key", Args: cobra.NoArgs,
		Long: "Make a platform admin who is an owner in the organisation, and print the key. Where there is no organisation yet, it is made too."}
	name := create.Flags().String("name", "", "the display name")
	email := create.Flags().String("email", "", "the e-mail address")
	createIn := create.Flags().String("org", "default", "slug of the organisation")
	_ = create.MarkFlagRequired("name")
	create.RunE = run(func(ctx context.Context, cmd *cobra.Command, conn *pgx.Conn, _ []string) error {
		key, hash := apikey.Issue()
		var there bool
		if err := conn.QueryRow(ctx, "SELECT hub_is_bootstrapped()").Scan(&there); err != nil {
			return err
		}
		var id *uuid.UUID
		statement := "SELECT admin_create_account($1, $2, nullif($3, ''), $4)"
		if !there {
			statement = "SELECT account_id FROM bootstrap_hub($1, $1, $2, $4, nullif($3, ''))"
		}
		if err := conn.QueryRow(ctx, statement, *createIn, *name, *email, hash).Scan(&id); err != nil {
			return readable(err)
		}
		if id == nil {
			return fmt.Errorf("there is no organisation %s", *createIn)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "Account  %s\n", id)
		showKey(cmd, key)
		return nil
	})

	issue := &cobra.Command{Use: "key ACCOUNT", Short: "Give an account a new key", Args: cobra.ExactArgs(1),
		Long: "Give an account a new key with all scopes that it may have, and print it. Its other keys stay as they are."}
	issueIn := issue.Flags().String("org", "", "slug of the organisation (default: where the account has the highest level)")
	issue.RunE = run(func(ctx context.Context, cmd *cobra.Command, conn *pgx.Conn, args []string) error {
		account, err := findAccount(ctx, conn, args[0])
		if err != nil {
			return err
		}
		key, hash := apikey.Issue()
		var id *uuid.UUID
		if err := conn.QueryRow(ctx, "SELECT admin_issue_key($1, nullif($2, ''), $3)", account.id, *issueIn, hash).Scan(&id); err != nil {
			return readable(err)
		}
		if id == nil {
			return fmt.Errorf("%s is a member of no such organisation", args[0])
		}
		if account.status != "active" {
			fmt.Fprintf(cmd.ErrOrStderr(), "The account is %s: the key works once it is active (hub admin activate).\n", account.status)
		}
		showKey(cmd, key)
		return nil
	})

	setStatus := func(use, short, long, status string) *cobra.Command {
		return &cobra.Command{Use: use + " ACCOUNT", Short: short, Long: long, Args: cobra.ExactArgs(1),
			RunE: run(func(ctx context.Context, cmd *cobra.Command, conn *pgx.Conn, args []string) error {
				account, err := findAccount(ctx, conn, args[0])
				if err != nil {
					return err
				}
				var owned []string
				if err := conn.QueryRow(ctx, "SELECT admin_set_account_status($1, $2)", account.id, status).Scan(&owned); err != nil {
					return readable(err)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s (%s) is %s.\n", account.name, account.id, status)
				if status == "deactivated" && len(owned) > 0 {
					fmt.Fprintf(cmd.OutOrStdout(), "It owns %s: hand that over (transferOrganizationOwnership).\n", strings.Join(owned, ", "))
				}
				return nil
			})}
	}

	cmd.AddCommand(
		&cobra.Command{Use: "accounts", Short: "List all accounts and where they work", Args: cobra.NoArgs, RunE: run(listAccounts)},
		create, issue,
		setStatus("deactivate", "Stop an account at once", "Stop an account at once and revoke its keys for good, in all organisations: the break-glass.", "deactivated"),
		setStatus("activate", "Let an account work again", "Let an account work again. Keys that a deactivation revoked stay revoked: give it a new one (hub admin key).", "active"),
		domainsCommand(run),
	)
	return cmd
}

// showKey prints a key alone on standard output's last line, so that scripts find it there.
func showKey(cmd *cobra.Command, key string) {
	fmt.Fprintln(cmd.ErrOrStderr(), "The key is not shown again:")
	fmt.Fprintln(cmd.OutOrStdout(), key)
}

// readable is what a person is told of a refusal.
func readable(err error) error {
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.ConstraintName != "" {
		return fmt.Errorf("%s (%s)", refused.Message, refused.ConstraintName)
	}
	return err
}

type foundAccount struct {
	id           uuid.UUID
	name, status string
}

// findAccount looks among all accounts: there is no index for this, and no hurry.
func findAccount(ctx context.Context, conn *pgx.Conn, wanted string) (foundAccount, error) {
	rows, err := conn.Query(ctx, `
		SELECT DISTINCT account_id, display_name, status FROM admin_list_accounts()
		WHERE account_id::text = $1 OR lower(email) = lower($1) OR display_name = $1`, wanted)
	if err != nil {
		return foundAccount{}, err
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (a foundAccount, err error) {
		err = row.Scan(&a.id, &a.name, &a.status)
		return a, err
	})
	switch {
	case err != nil:
		return foundAccount{}, err
	case len(found) == 0:
		return foundAccount{}, fmt.Errorf("there is no account %q: hub admin accounts lists them", wanted)
	case len(found) > 1:
		return foundAccount{}, fmt.Errorf("%d accounts are called %q: name one by its id (hub admin accounts)", len(found), wanted)
	}
	return found[0], nil
}

func listAccounts(ctx context.Context, cmd *cobra.Command, conn *pgx.Conn, _ []string) error {
	rows, err := conn.Query(ctx, `
		SELECT coalesce(org_slug, '-'), coalesce(membership_level, '-'), account_id, kind, access_level, status, display_name, coalesce(email, '-') FROM admin_list_accounts()`)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ORGANISATION\tLEVEL\tACCOUNT\tKIND\tPLATFORM\tSTATUS\tNAME\tE-MAIL")
	var fields [8]string
	into := make([]any, len(fields))
	for i := range fields {
		into[i] = &fields[i]
	}
	_, err = pgx.ForEachRow(rows, into, func() error {
		_, err := fmt.Fprintln(table, strings.Join(fields[:], "\t"))
		return err
	})
	return errors.Join(err, table.Flush())
}

func domainsCommand(run func(func(context.Context, *cobra.Command, *pgx.Conn, []string) error) func(*cobra.Command, []string) error) *cobra.Command {
	cmd := &cobra.Command{Use: "domains", Short: "List or change the reserved e-mail domains", Args: cobra.NoArgs,
		Long: "List the e-mail domains that are reserved for llm and service accounts, after the changes asked for. Accounts that there are keep their addresses."}
	add := cmd.Flags().StringSlice("add", nil, "domains to reserve")
	remove := cmd.Flags().StringSlice("remove", nil, "domains to set free")
	cmd.RunE = run(func(ctx context.Context, cmd *cobra.Command, conn *pgx.Conn, _ []string) error {
		batch := &pgx.Batch{}
		batch.Queue("INSERT INTO reserved_email_domains (domain) SELECT lower(d) FROM unnest($1::text[]) d ON CONFLICT DO NOTHING", *add)
		batch.Queue("DELETE FROM reserved_email_domains WHERE domain = ANY (SELECT lower(d) FROM unnest($1::text[]) d)", *remove)
		batch.Queue("SELECT domain FROM reserved_email_domains ORDER BY domain").Query(func(rows pgx.Rows) error {
			domains, err := pgx.CollectRows(rows, pgx.RowTo[string])
			for _, domain := range domains {
				fmt.Fprintln(cmd.OutOrStdout(), domain)
			}
			return err
		})
		return readable(conn.SendBatch(ctx, batch).Close())
	})
	return cmd
}
