package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/store"
	"github.com/alkdev/hub/internal/taskfiles"
)

// SyncTasks implements the contract's operation. The files are judged together before anything is written; then the rows that
// will change are locked and judged again, so that nothing is lost that others write meanwhile.
func (s *Server) SyncTasks(ctx context.Context, r api.SyncTasksRequestObject) (api.SyncTasksResponseObject, error) {
	if _, err := s.db.GetProject(ctx, r.ProjectId); err != nil {
		return nil, missing("project", err)
	}
	run := &taskSync{
		project: r.ProjectId, prune: deref(r.Body.Prune), keepGoing: deref(r.Body.KeepGoing), fileWins: deref(r.Body.OnConflict) == api.TaskSyncOnConflictFile,
		report: api.TaskSyncReport{
			Created: []string{}, Updated: []api.TaskFieldList{}, Unchanged: []string{}, Removed: []string{}, Ahead: []api.TaskFieldList{}, Conflicts: []api.TaskFieldList{},
			Skipped: []string{}, Errors: []api.TaskFileFault{}, Warnings: []api.TaskFileFault{},
		},
	}
	run.parse(r.Body.Files)
	if err := run.read(ctx, s.db); err != nil {
		return nil, err
	}
	run.judgeDependencies()
	if dry := deref(r.Body.DryRun); dry || len(run.report.Errors) > 0 && !run.keepGoing || !run.plan() {
		if dry && (len(run.report.Errors) == 0 || run.keepGoing) {
			run.plan()
		}
		return api.SyncTasks200JSONResponse(run.sorted()), nil
	}
	if err := s.store.Tx(ctx, store.ReadCommitted, func(q *db.Queries) error { return run.apply(ctx, q) }); err != nil {
		return nil, err
	}
	run.report.Applied = true
	return api.SyncTasks200JSONResponse(run.sorted()), nil
}

// taskSync is one run of syncTasks.
type taskSync struct {
	project                    uuid.UUID
	prune, keepGoing, fileWins bool

	files   map[string]*fileTask // by slug; those with errors are not among them
	refused map[string]bool      // slugs and paths of files with errors: what they stand for is not pruned
	rows    map[string]syncRow   // by slug
	report  api.TaskSyncReport
	creates []*fileTask
	updates []taskUpdate
	removes []uuid.UUID
	adds    [][2]string // dependent, prerequisite
	drops   [][2]string
}

type fileTask struct {
	taskfiles.Task
	path   string
	fields map[string]string
}

// taskUpdate is what a task becomes.
type taskUpdate struct {
	row    syncRow
	file   *fileTask
	take   []string // fields that come from the file
	base   map[string]string
	depend []string
}

func (r *taskSync) fault(path string, line int, format string, args ...any) {
	r.report.Errors = append(r.report.Errors, api.TaskFileFault{Path: path, Line: int32(line), Message: fmt.Sprintf(format, args...)})
	r.refused[path] = true
}

// parse reads the files, and finds out what is wrong with each of them, and ids that several have.
func (r *taskSync) parse(files []api.TaskFile) {
	r.files, r.refused = map[string]*fileTask{}, map[string]bool{}
	first := map[string]string{} // the path where a slug came first
	paths := map[string]bool{}
	for _, file := range files {
		if paths[file.Path] {
			r.fault(file.Path, 1, "the path is given twice")
			continue
		}
		paths[file.Path] = true
		task, err := taskfiles.Parse(file.Text)
		var faults taskfiles.Faults
		switch {
		case errors.Is(err, taskfiles.ErrNoTask):
			r.report.Skipped = append(r.report.Skipped, file.Path)
			continue
		case errors.As(err, &faults):
			for _, f := range faults {
				r.fault(file.Path, f.Line, "%s", f.Message)
			}
			if task.Slug != "" {
				r.refused[task.Slug] = true
			}
			continue
		}
		if message := outsideLimits(task, file.Path); message != "" {
			r.fault(file.Path, 1, "%s", message)
			r.refused[task.Slug] = true
			continue
		}
		for _, w := range task.Warnings {
			r.report.Warnings = append(r.report.Warnings, api.TaskFileFault{Path: file.Path, Line: int32(w.Line), Message: w.Message})
		}
		if before, ok := first[task.Slug]; ok {
			r.fault(file.Path, 1, "the id %q is that of %s already", task.Slug, before)
			r.refused[task.Slug], r.refused[before] = true, true
			delete(r.files, task.Slug)
			continue
		}
		first[task.Slug] = file.Path
		r.files[task.Slug] = &fileTask{Task: task, path: file.Path, fields: task.Fields(file.Path)}
	}
}

// outsideLimits says what of the database's limits a file does not keep, so that it is said with the file's name.
func outsideLimits(t taskfiles.Task, path string) string {
	tags := strings.Join(t.Tags, "")
	switch {
	case len(t.Slug) > 500 || strings.ContainsFunc(t.Slug, func(c rune) bool { return c < ' ' || c == 0x7f }):
		return "the id has more than 500 bytes, or control characters"
	case len([]rune(t.Name)) > 1000:
		return "the name has more than 1,000 characters"
	case len([]rune(t.Assignee)) > 200 || len([]rune(t.Due)) > 200:
		return "assignee and due have at most 200 characters"
	case len(t.Tags) > 100 || len(tags) > 10000:
		return "there are more than 100 tags, or they are too long"
	case len(t.Body) > 1<<20:
		return "the body has more than 1,048,576 bytes"
	case strings.ContainsRune(path, '\\') || strings.ContainsFunc(path, func(c rune) bool { return c < ' ' || c == 0x7f }) ||
		slices.ContainsFunc(strings.Split(path, "/"), func(part string) bool { return part == "" || part == "." || part == ".." }):
		return "the path is not relative, with its parts joined by slashes"
	}
	return ""
}

// syncRow is a task with the slugs of its prerequisites.
type syncRow struct {
	db.ListTasksForSyncRow
	DependsOn []string
}

func (r *taskSync) read(ctx context.Context, q *db.Queries) error {
	rows, err := q.ListTasksForSync(ctx, r.project)
	if err != nil {
		return err
	}
	edges, err := q.ListDependencyEdges(ctx, r.project)
	if err != nil {
		return err
	}
	slugs := make(map[uuid.UUID]string, len(rows))
	for _, row := range rows {
		slugs[row.ID] = row.Slug
	}
	dependsOn := map[uuid.UUID][]string{}
	for _, e := range edges {
		if slug, ok := slugs[e.DependsOnTaskID]; ok {
			dependsOn[e.DependentTaskID] = append(dependsOn[e.DependentTaskID], slug)
		}
	}
	r.rows = make(map[string]syncRow, len(rows))
	for _, row := range rows {
		slices.Sort(dependsOn[row.ID])
		r.rows[row.Slug] = syncRow{row, dependsOn[row.ID]}
	}
	return nil
}

// pruned says whether a row goes, for want of a file.
func (r *taskSync) pruned(row syncRow) bool {
	return r.prune && !row.Archived && r.files[row.Slug] == nil && !r.refused[row.Slug] && !r.refused[row.Path]
}

// judgeDependencies names dependencies on what is no task, and circles.
func (r *taskSync) judgeDependencies() {
	for _, slug := range slices.Sorted(maps.Keys(r.files)) {
		f := r.files[slug]
		kept := f.DependsOn[:0:0]
		for _, on := range f.DependsOn {
			row, here := r.rows[on]
			if r.files[on] == nil && (!here || row.Archived || r.pruned(row)) {
				r.fault(f.path, f.DependsOnLine, "depends on %q, which is no task", on)
				continue
			}
			kept = append(kept, on)
		}
		f.DependsOn = kept
		f.fields = f.Fields(f.path)
	}
	edges := map[string][]string{}
	for slug, row := range r.rows {
		if !row.Archived && !r.pruned(row) {
			edges[slug] = row.DependsOn
		}
	}
	for slug, f := range r.files {
		edges[slug] = f.DependsOn
	}
	for _, circle := range circles(edges) {
		for _, slug := range circle[1:] {
			if f := r.files[slug]; f != nil {
				r.fault(f.path, f.DependsOnLine, "waits for itself: %s", strings.Join(circle, " -> "))
				r.refused[slug] = true
				delete(r.files, slug)
			}
		}
	}
}

// circles are the circles that a walk along the edges meets, each as a path that ends where it begins.
func circles(edges map[string][]string) (found [][]string) {
	const walking, done = 1, 2
	state := map[string]int{}
	for _, start := range slices.Sorted(maps.Keys(edges)) {
		if state[start] != 0 {
			continue
		}
		path, next := []string{start}, []int{0}
		state[start] = walking
		for len(path) > 0 {
			top := len(path) - 1
			at := path[top]
			if next[top] == len(edges[at]) {
				state[at] = done
				path, next = path[:top], next[:top]
				continue
			}
			to := edges[at][next[top]]
			next[top]++
			switch state[to] {
			case 0:
				state[to] = walking
				path, next = append(path, to), append(next, 0)
			case walking:
				found = append(found, append(slices.Clone(path[slices.Index(path, to):]), to))
			}
		}
	}
	return found
}

// rowFields are a row's authored fields, as taskfiles spells them.
func rowFields(row syncRow) map[string]string {
	return map[string]string{
		"name": row.Name, "path": row.Path, "scope": deref(row.Scope), "risk": deref(row.Risk), "impact": deref(row.Impact), "level": deref(row.Level), "priority": deref(row.Priority),
		"tags": taskfiles.List(row.Tags), "dependsOn": taskfiles.List(row.DependsOn), "assignee": deref(row.Assignee), "due": deref(row.Due),
		"created": taskfiles.Time(row.FileCreatedAt), "modified": taskfiles.Time(row.FileModifiedAt), "body": row.BodyHash,
	}
}

// plan says what is to be done, in the report and in what apply reads; false when there is nothing to write.
func (r *taskSync) plan() bool {
	r.report.Created, r.report.Updated, r.report.Unchanged, r.report.Removed = []string{}, []api.TaskFieldList{}, []string{}, []string{}
	r.report.Ahead, r.report.Conflicts = []api.TaskFieldList{}, []api.TaskFieldList{}
	r.creates, r.updates, r.removes, r.adds, r.drops = nil, nil, nil, nil, nil
	for slug, row := range r.rows {
		if r.pruned(row) {
			r.removes = append(r.removes, row.ID)
			r.report.Removed = append(r.report.Removed, slug)
		}
	}
	for slug, f := range r.files {
		row, here := r.rows[slug]
		if !here {
			r.creates = append(r.creates, f)
			r.report.Created = append(r.report.Created, slug)
			for _, on := range f.DependsOn {
				r.adds = append(r.adds, [2]string{slug, on})
			}
			continue
		}
		r.merge(f, row)
	}
	return len(r.creates)+len(r.updates)+len(r.removes) > 0
}

// merge compares a file with its task and with what both were after the last sync.
func (r *taskSync) merge(f *fileTask, row syncRow) {
	here := rowFields(row)
	returned := row.Archived && row.Base == nil // its file was gone, and is back
	var base map[string]string
	if row.Base != nil {
		_ = json.Unmarshal(row.Base, &base) // written below
	}
	u := taskUpdate{row: row, file: f, base: map[string]string{}}
	var ahead, conflicts, changed []string
	for field, theirs := range f.fields {
		before, known := base[field]
		switch {
		case theirs == here[field]:
		case returned || known && here[field] == before:
			u.take = append(u.take, field)
		case known && theirs == before:
			ahead = append(ahead, field)
			u.base[field] = before
			continue
		case r.fileWins:
			u.take = append(u.take, field)
		default:
			conflicts = append(conflicts, field)
		}
		u.base[field] = theirs
	}
	list := func(fields []string) api.TaskFieldList {
		slices.Sort(fields)
		return api.TaskFieldList{Slug: row.Slug, Path: f.path, Fields: fields}
	}
	if conflicts != nil {
		r.report.Conflicts = append(r.report.Conflicts, list(conflicts))
		return
	}
	if ahead != nil {
		r.report.Ahead = append(r.report.Ahead, list(ahead))
	}
	changed = slices.Clone(u.take)
	if deref(row.Frontmatter) != f.Head || row.Frontmatter == nil {
		changed = append(changed, "frontmatter")
	}
	if returned {
		changed = append(changed, "archived")
	}
	if changed == nil && maps.Equal(base, u.base) {
		r.report.Unchanged = append(r.report.Unchanged, row.Slug)
		return
	}
	u.depend = row.DependsOn
	if slices.Contains(u.take, "dependsOn") {
		u.depend = f.DependsOn
		for _, on := range f.DependsOn {
			if !slices.Contains(row.DependsOn, on) {
				r.adds = append(r.adds, [2]string{row.Slug, on})
			}
		}
		for _, on := range row.DependsOn {
			if !slices.Contains(f.DependsOn, on) {
				r.drops = append(r.drops, [2]string{row.Slug, on})
			}
		}
	}
	r.updates = append(r.updates, u)
	if changed == nil { // only the base: both sides made the same change
		r.report.Unchanged = append(r.report.Unchanged, row.Slug)
		return
	}
	r.report.Updated = append(r.report.Updated, list(changed))
}

// apply writes what is planned, after it has locked and read again what the plan is about.
func (r *taskSync) apply(ctx context.Context, q *db.Queries) error {
	if _, err := q.LockProject(ctx, r.project); err != nil { // other syncs, and who changes dependencies or completes tasks
		return missing("project", err)
	}
	ids := slices.Clone(r.removes)
	for _, u := range r.updates {
		ids = append(ids, u.row.ID)
	}
	if _, err := q.LockTasks(ctx, db.LockTasksParams{ProjectID: r.project, Ids: ids}); err != nil {
		return err
	}
	if err := r.read(ctx, q); err != nil {
		return err
	}
	r.plan() // what is new to this plan was unchanged before: it is not locked, and waits for the next sync
	locked := map[uuid.UUID]bool{}
	for _, id := range ids {
		locked[id] = true
	}
	r.updates = slices.DeleteFunc(r.updates, func(u taskUpdate) bool { return !locked[u.row.ID] })
	r.removes = slices.DeleteFunc(r.removes, func(id uuid.UUID) bool { return !locked[id] })

	if len(r.removes) > 0 {
		if err := q.ArchiveTasks(ctx, db.ArchiveTasksParams{ProjectID: r.project, Ids: r.removes}); err != nil {
			return err
		}
	}
	if len(r.updates) > 0 {
		if err := q.UpdateTasksFromFiles(ctx, db.UpdateTasksFromFilesParams{ProjectID: r.project, Tasks: asJSON(each(r.updates, taskUpdate.record))}); err != nil {
			return err
		}
	}
	byslug := map[string]uuid.UUID{}
	for slug, row := range r.rows {
		byslug[slug] = row.ID
	}
	if len(r.creates) > 0 {
		made, err := q.CreateTasksFromFiles(ctx, db.CreateTasksFromFilesParams{ProjectID: r.project, Tasks: asJSON(each(r.creates, (*fileTask).record))})
		if err != nil {
			return err
		}
		for _, m := range made {
			byslug[m.Slug] = m.ID
		}
	}
	pairs := func(edges [][2]string) (dependents, prerequisites []uuid.UUID) {
		for _, e := range edges {
			from, ok := byslug[e[0]]
			on, also := byslug[e[1]]
			if ok && also {
				dependents, prerequisites = append(dependents, from), append(prerequisites, on)
			}
		}
		return dependents, prerequisites
	}
	if dependents, prerequisites := pairs(r.drops); dependents != nil {
		if err := q.RemoveDependencies(ctx, db.RemoveDependenciesParams{ProjectID: r.project, DependentIds: dependents, PrerequisiteIds: prerequisites}); err != nil {
			return err
		}
	}
	if dependents, prerequisites := pairs(r.adds); dependents != nil {
		return q.AddDependenciesOfTasks(ctx, db.AddDependenciesOfTasksParams{ProjectID: r.project, DependentIds: dependents, PrerequisiteIds: prerequisites})
	}
	return nil
}

func asJSON(value any) json.RawMessage {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err) // strings and times
	}
	return text
}

// taskRecord is a row on its way into the database.
type taskRecord struct {
	ID          *uuid.UUID        `json:"id,omitempty"`
	Slug        string            `json:"slug,omitempty"`
	Name        string            `json:"name"`
	Path        string            `json:"path"`
	Scope       *string           `json:"scope"`
	Risk        *string           `json:"risk"`
	Impact      *string           `json:"impact"`
	Level       *string           `json:"level"`
	Priority    *string           `json:"priority"`
	Tags        []string          `json:"tags"`
	Assignee    *string           `json:"assignee"`
	Due         *string           `json:"due"`
	Body        *string           `json:"body"`
	Created     *time.Time        `json:"created"`
	Modified    *time.Time        `json:"modified"`
	Frontmatter string            `json:"frontmatter"`
	Base        map[string]string `json:"base"`
	Status      string            `json:"status,omitempty"`
	Archived    bool              `json:"archived"`
}

func (f *fileTask) record() taskRecord {
	status := f.Status
	if status == "in-progress" { // nobody is at work on it here
		status = "pending"
	}
	return taskRecord{
		Slug: f.Slug, Name: f.Name, Path: f.path, Scope: nullable(f.Scope), Risk: nullable(f.Risk), Impact: nullable(f.Impact), Level: nullable(f.Level), Priority: nullable(f.Priority),
		Tags: f.Tags, Assignee: nullable(f.Assignee), Due: nullable(f.Due), Body: &f.Body, Created: f.Created, Modified: f.Modified, Frontmatter: f.Head, Base: f.fields, Status: status,
	}
}

func (u taskUpdate) record() taskRecord {
	row, f := u.row, u.file
	out := taskRecord{
		ID: &row.ID, Name: row.Name, Path: row.Path, Scope: row.Scope, Risk: row.Risk, Impact: row.Impact, Level: row.Level, Priority: row.Priority, Tags: row.Tags, Assignee: row.Assignee, Due: row.Due,
		Created: row.FileCreatedAt, Modified: row.FileModifiedAt, Frontmatter: f.Head, Base: u.base, Archived: row.Archived && row.Base != nil,
	}
	theirs := f.record()
	for _, field := range u.take {
		switch field {
		case "name":
			out.Name = theirs.Name
		case "path":
			out.Path = theirs.Path
		case "scope":
			out.Scope = theirs.Scope
		case "risk":
			out.Risk = theirs.Risk
		case "impact":
			out.Impact = theirs.Impact
		case "level":
			out.Level = theirs.Level
		case "priority":
			out.Priority = theirs.Priority
		case "tags":
			out.Tags = theirs.Tags
		case "assignee":
			out.Assignee = theirs.Assignee
		case "due":
			out.Due = theirs.Due
		case "created":
			out.Created = theirs.Created
		case "modified":
			out.Modified = theirs.Modified
		case "body":
			out.Body = theirs.Body
		}
	}
	return out
}

// sorted is the report, its lists by slug and path.
func (r *taskSync) sorted() api.TaskSyncReport {
	bySlug := func(a, b api.TaskFieldList) int { return strings.Compare(a.Slug, b.Slug) }
	byPath := func(a, b api.TaskFileFault) int {
		return strings.Compare(fmt.Sprintf("%s\x00%9d", a.Path, a.Line), fmt.Sprintf("%s\x00%9d", b.Path, b.Line))
	}
	for _, list := range [][]string{r.report.Created, r.report.Unchanged, r.report.Removed, r.report.Skipped} {
		slices.Sort(list)
	}
	for _, list := range [][]api.TaskFieldList{r.report.Updated, r.report.Ahead, r.report.Conflicts} {
		slices.SortFunc(list, bySlug)
	}
	for _, list := range [][]api.TaskFileFault{r.report.Errors, r.report.Warnings} {
		slices.SortStableFunc(list, byPath)
	}
	return r.report
}

// ListTaskFiles implements the contract's operation.
func (s *Server) ListTaskFiles(ctx context.Context, r api.ListTaskFilesRequestObject) (api.ListTaskFilesResponseObject, error) {
	limit := pageSize(r.Params.Limit)
	slug, _, err := after[string](r.Params.Cursor, r.ProjectId)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListTaskFiles(ctx, db.ListTaskFilesParams{ProjectID: r.ProjectId, AfterSlug: slug, RowLimit: limit + 1})
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		if _, err := s.db.GetProject(ctx, r.ProjectId); err != nil {
			return nil, missing("project", err)
		}
	}
	rows, cursor := next(rows, limit, r.ProjectId, func(t db.ListTaskFilesRow) string { return t.Slug })
	return api.ListTaskFiles200JSONResponse{Items: each(rows, taskFile), NextCursor: cursor}, nil
}

func taskFile(t db.ListTaskFilesRow) api.TaskFileState {
	task := taskfiles.Task{
		Head: deref(t.Frontmatter), Body: t.Body, Slug: t.Slug, Name: t.Name, Status: t.Status, Scope: deref(t.Scope), Risk: deref(t.Risk), Impact: deref(t.Impact), Level: deref(t.Level),
		Priority: deref(t.Priority), Tags: t.Tags, DependsOn: t.DependsOn, Assignee: deref(t.Assignee), Due: deref(t.Due), Created: t.FileCreatedAt, Modified: t.FileModifiedAt,
	}
	var base map[string]string
	if t.Frontmatter != nil {
		_ = json.Unmarshal(t.Base, &base) // written by sync
		// Unchanged here: then what the file depends on that was no task stays in it.
		if was, err := taskfiles.Parse(*t.Frontmatter); err == nil && base["dependsOn"] == taskfiles.List(t.DependsOn) {
			task.DependsOn = was.DependsOn
		}
	}
	out := api.TaskFileState{Path: t.Path, Text: task.Write()}
	if t.Frontmatter != nil {
		sum := sha256.Sum256([]byte(*t.Frontmatter + base["body"]))
		hash := hex.EncodeToString(sum[:])
		out.Base = &hash
	}
	return out
}
