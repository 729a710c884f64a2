// Command generate writes what `make generate` does not leave to sqlc and oapi-codegen: the merged contract, and what is
// read off a migrated database (constraint names, schema.sql, the reference of tables). Its sub-command errors does the rest.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/jackc/pgx/v5"

	"github.com/alkdev/hub/internal/postgres"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: generate contract|schema")
	}
	switch args[0] {
	case "contract":
		return writeContract("openapi", "gen/api")
	case "schema":
		return withMigratedDatabase(ctx, func(ctx context.Context, conn *pgx.Conn, server *postgres.Server, bin string) error {
			if err := writeRules(ctx, conn, "gen/db/rules.gen.go"); err != nil {
				return err
			}
			if err := writeSchema(ctx, server, bin, "sql/schema.sql"); err != nil {
				return err
			}
			return writeTables(ctx, conn, "docs/reference/tables.md")
		})
	default:
		return fmt.Errorf("%s: not known", args[0])
	}
}
