package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/google/uuid"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/alkdev/hub/gen/client"
)

func importCommand() *cobra.Command {
	cmd := &cobra.Command{Args: cobra.NoArgs, RunE: showHelp, Use: "import", Short: "Bring sessions of other programs into the hub"}
	cmd.AddCommand(importOpencodeCommand())
	return cmd
}

func importOpencodeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "opencode FILE...",
		Short: "Import session exports of opencode",
		Long: `Import session exports of opencode ("opencode export SESSION > FILE") into a running hub.

A directory stands for the .json and .zip files in it, - for standard input. A .zip is an archive of exports, such as the hub's own of a
session with all its descendants (GET /v1/sessions/{sessionId}/export/tree). Each file is imported whole or not at all; the same file
again changes nothing; a later export of a session updates it. Parents and children find each other in any order.`,
		Example: "  hub import opencode --project shop-api ~/exports/*.json\n  opencode export ses_... | hub import opencode -",
		Args:    cobra.MinimumNArgs(1),
	}
	connect := connectFlags(cmd)
	project := cmd.Flags().String("project", "default", "slug of the project that new sessions go to; made if there is none")
	quiet := cmd.Flags().BoolP("quiet", "q", false, "no progress bar; only the summary and what failed")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		files, err := expand(args)
		if err != nil {
			return err
		}
		hub, err := connect()
		if err != nil {
			return err
		}
		projectID, err := findOrCreateProject(cmd.Context(), hub, *project)
		if err != nil {
			return err
		}
		return importFiles(cmd, hub, projectID, files, *quiet)
	}
	return cmd
}

// connectFlags adds the flags that say which hub, and as whom. The function that it returns makes a client of them once they are
// parsed.
func connectFlags(cmd *cobra.Command) func() (*client.ClientWithResponses, error) {
	dataDir := dataDirFlag(cmd)
	addresses := cmd.Flags().String("url", fromEnv("http://127.0.0.1:8080", "HUB_URL"), "the hub, or several servers of it with commas between (HUB_URL)")
	key := cmd.Flags().String("key", "", "API key (HUB_API_KEY; default: admin-key in the data directory)")
	return func() (*client.ClientWithResponses, error) {
		if *key == "" {
			*key = os.Getenv("HUB_API_KEY")
		}
		if *key == "" {
			dir, _, err := dataDir()
			if err != nil {
				return nil, err
			}
			text, err := os.ReadFile(filepath.Join(dir, "admin-key"))
			if errors.Is(err, os.ErrNotExist) { // a hub that uses DATABASE_URL stays in .hub, wherever that is
				text, err = os.ReadFile(filepath.Join(".hub", "admin-key"))
			}
			if err != nil {
				return nil, fmt.Errorf("no API key: give --key or HUB_API_KEY (%w)", err)
			}
			*key = strings.TrimSpace(string(text))
		}
		servers, err := newServers(*addresses)
		if err != nil {
			return nil, err
		}
		return client.NewClientWithResponses(servers.urls[0].String(), client.WithHTTPClient(&http.Client{Transport: servers}), client.WithRequestEditorFn(func(_ context.Context, r *http.Request) error {
			r.Header.Set("Authorization", "Bearer "+*key)
			return nil
		}))
	}
}

// expand lists the files that the arguments stand for, in the order given, a directory's by name.
func expand(args []string) ([]string, error) {
	var files []string
	for _, arg := range args {
		info, err := os.Stat(arg)
		switch {
		case arg == "-":
			files = append(files, arg)
		case err != nil:
			return nil, err
		case info.IsDir():
			var found []string
			for _, pattern := range []string{"*.json", "*.zip"} {
				matches, err := fs.Glob(os.DirFS(arg), pattern)
				if err != nil {
					return nil, err
				}
				found = append(found, matches...)
			}
			if len(found) == 0 {
				return nil, fmt.Errorf("%s: no .json or .zip files in this directory", arg)
			}
			sort.Strings(found)
			for _, name := range found {
				files = append(files, filepath.Join(arg, name))
			}
		default:
			files = append(files, arg)
		}
	}
	return files, nil
}

func findOrCreateProject(ctx context.Context, hub *client.ClientWithResponses, slug string) (uuid.UUID, error) {
	found, err := hub.ListProjectsWithResponse(ctx, &client.ListProjectsParams{Slug: &slug})
	if err != nil {
		return uuid.Nil, err
	}
	if found.JSON200 == nil {
		return uuid.Nil, refusal(found.Body, found.Status())
	}
	if len(found.JSON200.Items) > 0 {
		return found.JSON200.Items[0].Id, nil
	}
	made, err := hub.CreateProjectWithResponse(ctx, nil, client.ProjectCreate{Slug: slug, Name: slug})
	if err != nil {
		return uuid.Nil, err
	}
	if made.JSON201 == nil {
		return uuid.Nil, refusal(made.Body, made.Status())
	}
	return made.JSON201.Id, nil
}

// tally sums up what became of the files.
type tally struct {
	files           map[client.SessionImportResult]int
	messages, parts client.ImportCounts
	failed          []error
}

func importFiles(cmd *cobra.Command, hub *client.ClientWithResponses, project uuid.UUID, files []string, quiet bool) error {
	var total int64
	for _, file := range files {
		if info, err := os.Stat(file); err == nil {
			total += info.Size()
		} else {
			total = -1 // standard input: no end is known
			break
		}
	}
	out := cmd.ErrOrStderr()
	if quiet || !term.IsTerminal(int(os.Stderr.Fd())) {
		out = io.Discard
	}
	bar := progressbar.NewOptions64(total, progressbar.OptionSetWriter(out), progressbar.OptionShowBytes(true), progressbar.OptionUseIECUnits(true),
		progressbar.OptionSetWidth(30), progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(65e6))
	sum := tally{files: map[client.SessionImportResult]int{}}
	for i, file := range files {
		if cmd.Context().Err() != nil {
			return cmd.Context().Err()
		}
		bar.Describe(fmt.Sprintf("%d/%d %s", i+1, len(files), filepath.Base(file)))
		results, err := importFile(cmd.Context(), hub, project, file, bar)
		if err != nil {
			_ = bar.Clear()
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: %v\n", file, err)
			sum.failed = append(sum.failed, err)
			continue
		}
		for _, result := range results {
			sum.files[result.Result]++
			add(&sum.messages, result.Messages)
			add(&sum.parts, result.Parts)
		}
	}
	_ = bar.Finish()
	sum.print(cmd.OutOrStdout())
	if len(sum.failed) > 0 {
		return fmt.Errorf("%d of %d files were refused", len(sum.failed), len(files))
	}
	return nil
}

// importFile sends one session, or all of an archive.
func importFile(ctx context.Context, hub *client.ClientWithResponses, project uuid.UUID, file string, bar *progressbar.ProgressBar) ([]client.SessionImport, error) {
	in := os.Stdin
	if file != "-" {
		opened, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer opened.Close()
		in = opened
	}
	body := struct{ io.Reader }{io.TeeReader(in, bar)} // hides Close: the client would close standard input
	if strings.EqualFold(filepath.Ext(file), ".zip") {
		answer, err := hub.ImportSessionTreeWithBodyWithResponse(ctx, &client.ImportSessionTreeParams{ProjectId: project}, "application/zip", body)
		if err != nil {
			return nil, err
		}
		if answer.JSON200 == nil {
			return nil, refusal(answer.Body, answer.Status())
		}
		var results []client.SessionImport
		for _, item := range answer.JSON200.Items {
			results = append(results, item.Session)
		}
		return results, nil
	}
	answer, err := hub.ImportSessionWithBodyWithResponse(ctx, &client.ImportSessionParams{ProjectId: project}, "application/json", body)
	switch {
	case err != nil:
		return nil, err
	case answer.JSON201 != nil:
		return []client.SessionImport{*answer.JSON201}, nil
	case answer.JSON200 != nil:
		return []client.SessionImport{*answer.JSON200}, nil
	default:
		return nil, refusal(answer.Body, answer.Status())
	}
}

func add(sum *client.ImportCounts, counts client.ImportCounts) {
	sum.Created += counts.Created
	sum.Updated += counts.Updated
	sum.Deleted += counts.Deleted
	sum.Unchanged += counts.Unchanged
}

func (t *tally) print(out io.Writer) {
	fmt.Fprintf(out, "sessions  %d created, %d updated, %d unchanged, %d older than what the hub has, %d refused\n",
		t.files[client.SessionImportResultCreated], t.files[client.SessionImportResultUpdated],
		t.files[client.SessionImportResultUnchanged], t.files[client.SessionImportResultOlder], len(t.failed))
	for _, line := range []struct {
		name string
		c    client.ImportCounts
	}{{"messages", t.messages}, {"parts", t.parts}} {
		fmt.Fprintf(out, "%-8s  %d created, %d updated, %d deleted, %d unchanged\n", line.name, line.c.Created, line.c.Updated, line.c.Deleted, line.c.Unchanged)
	}
}

// refusal tells a problem in a line or two.
func refusal(body []byte, status string) error {
	var problem client.Problem
	if json.Unmarshal(body, &problem) != nil || problem.Code == "" {
		return errors.New(status)
	}
	text := fmt.Sprintf("%s (%s)", problem.Detail, problem.Code)
	for i, fault := range problem.Errors {
		if i == 5 {
			text += fmt.Sprintf("\n  and %d more", len(problem.Errors)-i)
			break
		}
		pointer := fault.Pointer
		if pointer == "" {
			pointer = "the whole"
		}
		text += fmt.Sprintf("\n  %s: %s", pointer, fault.Message)
	}
	return errors.New(text)
}
