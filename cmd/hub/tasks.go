package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/alkdev/hub/gen/client"
	"github.com/alkdev/hub/internal/taskfiles"
)

func tasksCommand() *cobra.Command {
	cmd := &cobra.Command{Args: cobra.NoArgs, RunE: showHelp, Use: "tasks", Short: "Bring task files into the hub, and back"}
	cmd.AddCommand(syncTasksCommand(), pullTasksCommand())
	return cmd
}

func syncTasksCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sync DIR",
		Short: "Bring the task files of a folder into a project",
		Long: `Bring the task files of a folder, in the format of taskgraph, into a project of a running hub.

Each .md file below DIR with a frontmatter is a task; links are not followed. The files author a task's fields; its status moves in
the hub alone. All or nothing: where a file has an error, nothing is applied, unless --keep-going leaves those files out. A field that
was changed in the hub and in the file since the last sync is a conflict: both stay as they are, until the file says what the
hub says ("hub tasks pull --force") or --prefer-files overrules the hub. The same files again change nothing.`,
		Example: "  hub tasks sync tasks/ --project shop-api --dry-run\n  hub tasks sync tasks/ --project shop-api --prune --watch",
		Args:    cobra.ExactArgs(1),
	}
	connect := connectFlags(cmd)
	project := cmd.Flags().String("project", "default", "slug of the project; made if there is none")
	prune := cmd.Flags().Bool("prune", false, "archive the tasks whose files are gone")
	dryRun := cmd.Flags().Bool("dry-run", false, "say what would be done, and do nothing")
	keepGoing := cmd.Flags().Bool("keep-going", false, "leave files with errors out, and apply the others")
	preferFiles := cmd.Flags().Bool("prefer-files", false, "in a conflict the file's word counts")
	watch := cmd.Flags().Bool("watch", false, "go on, and sync whenever a file changes")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		hub, err := connect()
		if err != nil {
			return err
		}
		projectID, err := findProject(cmd.Context(), hub, *project, !*dryRun)
		if err != nil {
			return err
		}
		body := client.TaskSync{Prune: prune, DryRun: dryRun, KeepGoing: keepGoing}
		if *preferFiles {
			wins := client.TaskSyncOnConflictFile
			body.OnConflict = &wins
		}
		last := ""
		for {
			files, state, err := readTaskFiles(args[0])
			if err == nil && state != last {
				last = state
				body.Files = files
				err = syncOnce(cmd, hub, projectID, body)
			}
			if !*watch {
				return err
			}
			if err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), "hub:", err)
			}
			select {
			case <-cmd.Context().Done():
				return nil
			case <-time.After(time.Second):
			}
		}
	}
	return cmd
}

// findProject finds a project by its slug. Where nothing may be made, a project that there is not is an error.
func findProject(ctx context.Context, hub *client.ClientWithResponses, slug string, make bool) (uuid.UUID, error) {
	if make {
		return findOrCreateProject(ctx, hub, slug)
	}
	found, err := hub.ListProjectsWithResponse(ctx, &client.ListProjectsParams{Slug: &slug})
	switch {
	case err != nil:
		return uuid.Nil, err
	case found.JSON200 == nil:
		return uuid.Nil, refusal(found.Body, found.Status())
	case len(found.JSON200.Items) == 0:
		return uuid.Nil, fmt.Errorf("there is no project %s", slug)
	}
	return found.JSON200.Items[0].Id, nil
}

// readTaskFiles reads the .md files below a folder. state changes when any of them does.
func readTaskFiles(dir string) (files []client.TaskFile, state string, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = root.Close() }()
	sum := sha256.New()
	files = []client.TaskFile{}
	err = fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() || filepath.Ext(name) != ".md" {
			return err
		}
		text, err := root.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) { // gone meanwhile
			return nil
		}
		if err != nil {
			return err
		}
		if strings.ToValidUTF8(string(text), "") != string(text) {
			return fmt.Errorf("%s: is not UTF-8", name)
		}
		fmt.Fprintf(sum, "%s\x00%d\x00%s", name, len(text), text)
		files = append(files, client.TaskFile{Path: name, Text: string(text)})
		return nil
	})
	return files, hex.EncodeToString(sum.Sum(nil)), err
}

func syncOnce(cmd *cobra.Command, hub *client.ClientWithResponses, project uuid.UUID, body client.TaskSync) error {
	answer, err := hub.SyncTasksWithResponse(cmd.Context(), project, nil, body)
	if err != nil {
		return err
	}
	if answer.JSON200 == nil {
		return refusal(answer.Body, answer.Status())
	}
	return printSync(cmd.OutOrStdout(), *answer.JSON200, body)
}

// printSync tells a report. The error is what a script must notice: files that were refused, or conflicts.
func printSync(out io.Writer, r client.TaskSyncReport, body client.TaskSync) error {
	for _, e := range r.Errors {
		fmt.Fprintf(out, "error      %s:%d: %s\n", e.Path, e.Line, e.Message)
	}
	for _, e := range r.Warnings {
		fmt.Fprintf(out, "warning    %s:%d: %s\n", e.Path, e.Line, e.Message)
	}
	for _, path := range r.Skipped {
		fmt.Fprintf(out, "skipped    %s: no frontmatter\n", path)
	}
	for _, list := range []struct {
		what  string
		slugs []string
	}{{"created", r.Created}, {"removed", r.Removed}} {
		for _, slug := range list.slugs {
			fmt.Fprintf(out, "%-9s  %s\n", list.what, slug)
		}
	}
	for _, list := range []struct {
		what  string
		tasks []client.TaskFieldList
	}{{"updated", r.Updated}, {"in hub", r.Ahead}, {"conflict", r.Conflicts}} {
		for _, t := range list.tasks {
			fmt.Fprintf(out, "%-9s  %s: %s\n", list.what, t.Slug, strings.Join(t.Fields, ", "))
		}
	}
	refused := len(r.Errors) > 0 && (body.KeepGoing == nil || !*body.KeepGoing)
	dry := body.DryRun != nil && *body.DryRun
	if !refused {
		would := ""
		if dry {
			would = " (dry run: nothing was written)"
		}
		fmt.Fprintf(out, "%d created, %d updated, %d unchanged, %d removed, %d conflicts%s\n", len(r.Created), len(r.Updated), len(r.Unchanged), len(r.Removed), len(r.Conflicts), would)
	}
	switch {
	case refused:
		return fmt.Errorf("nothing was applied: %d errors (--keep-going leaves those files out)", len(r.Errors))
	case len(r.Errors) > 0:
		return fmt.Errorf("%d errors: those files were left out", len(r.Errors))
	case len(r.Conflicts) > 0:
		return fmt.Errorf("%d conflicts: those tasks and files stay as they are", len(r.Conflicts))
	}
	return nil
}

func pullTasksCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pull DIR",
		Short: "Write a project's tasks back as files",
		Long: `Write a project's tasks as task files below DIR: what changed in the hub, each file's other lines byte for byte as they were.

A file that was changed since the last sync is left alone and named, unless --force. No file is removed.`,
		Example: "  hub tasks pull tasks/ --project shop-api",
		Args:    cobra.ExactArgs(1),
	}
	connect := connectFlags(cmd)
	project := cmd.Flags().String("project", "default", "slug of the project")
	force := cmd.Flags().Bool("force", false, "overwrite files that were changed since the last sync")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		hub, err := connect()
		if err != nil {
			return err
		}
		projectID, err := findProject(cmd.Context(), hub, *project, false)
		if err != nil {
			return err
		}
		var (
			written, unchanged, left int
			seen                     = map[string]bool{}
			cursor                   *string
			limit                    = int32(200)
		)
		for {
			page, err := hub.ListTaskFilesWithResponse(cmd.Context(), projectID, &client.ListTaskFilesParams{Limit: &limit, Cursor: cursor})
			if err != nil {
				return err
			}
			if page.JSON200 == nil {
				return refusal(page.Body, page.Status())
			}
			for _, file := range page.JSON200.Items {
				if seen[file.Path] {
					fmt.Fprintf(cmd.OutOrStdout(), "left       %s: several tasks have this path\n", file.Path)
					left++
					continue
				}
				seen[file.Path] = true
				switch done, err := pullFile(args[0], file, *force); {
				case err != nil:
					return err
				case done == "unchanged":
					unchanged++
				case done == "written":
					written++
					fmt.Fprintf(cmd.OutOrStdout(), "written    %s\n", file.Path)
				default:
					left++
					fmt.Fprintf(cmd.OutOrStdout(), "left       %s: changed since the last sync (--force overwrites it)\n", file.Path)
				}
			}
			if cursor = page.JSON200.NextCursor; cursor == nil {
				break
			}
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%d written, %d unchanged, %d left alone\n", written, unchanged, left)
		if left > 0 {
			return fmt.Errorf("%d files were left alone", left)
		}
		return nil
	}
	return cmd
}

// pullFile writes one file, whole or not at all: a reader never sees half of it. The path is below dir whatever it says, also where
// a link in dir leads elsewhere.
func pullFile(dir string, file client.TaskFileState, force bool) (done string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // files for people to read
		return "", err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer func() { _ = root.Close() }()
	name := filepath.FromSlash(file.Path)
	now, err := root.ReadFile(name)
	switch {
	case err == nil && string(now) == file.Text:
		return "unchanged", nil
	case err == nil && !force && (file.Base == nil || *file.Base != baseOf(string(now))):
		return "left", nil
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return "", err
	}
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return "", err
	}
	temporary := name + ".hub-" + uuid.NewString()
	if err := root.WriteFile(temporary, []byte(file.Text), 0o644); err != nil {
		return "", err
	}
	if err := root.Rename(temporary, name); err != nil {
		_ = root.Remove(temporary)
		return "", err
	}
	return "written", nil
}

// baseOf is what the hub calls a file's base.
func baseOf(text string) string {
	head, body, err := taskfiles.Split(text)
	if err != nil {
		return ""
	}
	of := sha256.Sum256([]byte(body))
	sum := sha256.Sum256([]byte(head + hex.EncodeToString(of[:])))
	return hex.EncodeToString(sum[:])
}
