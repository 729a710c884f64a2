package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/alkdev/hub/gen/client"
)

func rolesCommand() *cobra.Command {
	cmd := &cobra.Command{Args: cobra.NoArgs, RunE: showHelp, Use: "roles", Short: "Agents' roles"}
	cmd.AddCommand(rolesSyncCommand())
	return cmd
}

func rolesSyncCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sync [DIR]",
		Short: "Make the hub's roles what a repository's role files say",
		Long: `Make the hub's roles what the role files of a repository say: all .md files below .opencode/agents of DIR (default: here), also agents, agent
and .opencode/agent; where DIR has none of these, all below DIR. A file's path is its role's name.

Roles that the same set of files had before and has no more are removed. All of it is done or nothing.`,
		Example: "  hub roles sync --set shop-api ~/src/shop-api",
		Args:    cobra.MaximumNArgs(1),
	}
	connect := connectFlags(cmd)
	set := cmd.Flags().String("set", "", "name of the set (default: the directory's name)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		dir, err := filepath.Abs(path.Join(args...))
		if err != nil {
			return err
		}
		if *set == "" {
			*set = filepath.Base(dir)
		}
		body := client.RoleSync{FileSet: *set, Files: []client.RoleFile{}}
		names, err := readRoleFiles(dir, &body)
		if err != nil {
			return err
		}
		hub, err := connect()
		if err != nil {
			return err
		}
		answer, err := hub.SyncRolesWithResponse(cmd.Context(), nil, body)
		if err != nil {
			return err
		}
		if answer.JSON200 == nil {
			return namingFiles(refusal(answer.Body, answer.Status()), names)
		}
		printRoles(cmd.OutOrStdout(), *set, *answer.JSON200)
		return nil
	}
	return cmd
}

// readRoleFiles adds the role files of a repository to the body, and returns their names on this machine.
func readRoleFiles(dir string, body *client.RoleSync) (names []string, err error) {
	if info, err := os.Stat(dir); err != nil {
		return nil, err
	} else if !info.IsDir() {
		return nil, fmt.Errorf("%s is no directory", dir)
	}
	var roots []string
	for _, name := range []string{".opencode/agents", ".opencode/agent", "agents", "agent"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.IsDir() {
			roots = append(roots, filepath.Join(dir, name))
		}
	}
	if len(roots) == 0 {
		roots = []string{dir}
	}
	for _, root := range roots {
		files := os.DirFS(root)
		err := fs.WalkDir(files, ".", func(file string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || path.Ext(file) != ".md" {
				return err
			}
			text, err := fs.ReadFile(files, file)
			body.Files = append(body.Files, client.RoleFile{Path: path.Join("agents", file), Content: string(text)})
			names = append(names, filepath.Join(root, file))
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s: no role files (.md) in this directory", dir)
	}
	return names, nil
}

// namingFiles puts the names of files where a refusal points into the body.
func namingFiles(refusal error, names []string) error {
	text := refusal.Error()
	for i := len(names) - 1; i >= 0; i-- {
		for _, field := range []string{"path", "content"} {
			text = strings.ReplaceAll(text, "/files/"+strconv.Itoa(i)+"/"+field+":", names[i]+":")
		}
	}
	return errors.New(text)
}

func printRoles(out io.Writer, set string, result client.RoleSyncResult) {
	for _, change := range []struct {
		what  string
		names []string
	}{{"created", result.Created}, {"updated", result.Updated}, {"removed", result.Removed}} {
		for _, name := range change.names {
			fmt.Fprintf(out, "%s  %s\n", change.what, name)
		}
	}
	fmt.Fprintf(out, "%s: %d created, %d updated, %d removed, %d unchanged\n", set, len(result.Created), len(result.Updated), len(result.Removed), len(result.Unchanged))
}
