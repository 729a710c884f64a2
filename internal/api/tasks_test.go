package api_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3filter"
)

func init() {
	openapi3filter.RegisterBodyDecoder("text/markdown", openapi3filter.PlainBodyDecoder)
}

type taskBody struct {
	ID, ProjectID, Slug, Name, Path, Status  string
	Scope, Risk, Impact, Level, Priority     *string
	Tags, DependsOn                          []string
	Assignee, Due                            *string
	Body                                     string
	Ready                                    bool
	UnmetCount, FailedCount, DownstreamCount int
	Claim                                    *struct{ MappingID, SessionID, LeaseExpiresAt string }
	StartedAt, CompletedAt, ArchivedAt       *string
	Revision                                 int
	CreatedAt, UpdatedAt                     string
	Metadata                                 json.RawMessage
}

func (a answer) task(t testing.TB) (task taskBody) {
	t.Helper()
	a.into(t, &task)
	return task
}

// newTask makes a task; more are further members, each with a comma before it.
func (h *hub) newTask(t testing.TB, project, slug, more string) taskBody {
	t.Helper()
	return h.do(t, "POST", "/v1/projects/"+project+"/tasks", fmt.Sprintf(`{"slug":%q,"name":%q%s}`, slug, "Task "+slug, more)).wants(t, 201).task(t)
}

func (h *hub) newSessionIn(t testing.TB, project string) string {
	t.Helper()
	return h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`"}`).wants(t, 201).id(t)
}

// claims claims a task for a new session, and returns it.
func (h *hub) claims(t testing.TB, project, task string) taskBody {
	t.Helper()
	return h.do(t, "POST", "/v1/tasks/"+task+"/claim", `{"sessionId":"`+h.newSessionIn(t, project)+`"}`).wants(t, 200).task(t)
}

func slugs(tasks []taskBody) string {
	var all []string
	for _, task := range tasks {
		all = append(all, task.Slug)
	}
	return strings.Join(all, " ")
}

func (h *hub) tasksOf(t testing.TB, project, query string) []taskBody {
	t.Helper()
	var page struct{ Items []taskBody }
	h.do(t, "GET", "/v1/projects/"+project+"/tasks?"+query, nil).wants(t, 200).into(t, &page)
	return page.Items
}

func TestTaskFromCreationToDeletion(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := h.newProject(t, "p")
	first := h.newTask(t, p, "g/first", "")
	if first.Path != "g/first.md" || first.Status != "pending" || !first.Ready || first.Risk != nil || first.Tags == nil || first.DependsOn == nil || first.Revision != 1 {
		t.Errorf("the least that a task needs: %+v", first)
	}
	a := h.do(t, "POST", "/v1/projects/"+p+"/tasks", `{"slug":"second","name":"Second 😀","path":"x/y.md","scope":"broad","risk":"high","impact":"phase","level":"review","priority":"low",
		"tags":["a","b"],"assignee":"ada","due":"soon","body":"Do it.\n","dependsOn":["g/first"],"metadata":{"_x":{"n":1}}}`).wants(t, 201)
	second := a.task(t)
	if second.Ready || second.UnmetCount != 1 || !slices.Equal(second.DependsOn, []string{"g/first"}) || *second.Risk != "high" || *second.Due != "soon" || !slices.Equal(second.Tags, []string{"a", "b"}) {
		t.Errorf("created: %s", a.body)
	}
	path := "/v1/tasks/" + second.ID
	if a.header.Get("Location") != path || a.header.Get("ETag") != `"1"` {
		t.Errorf("%v", a.header)
	}
	wantJSON(t, "got", h.do(t, "GET", path, nil).wants(t, 200).body, a.body)
	if got := h.do(t, "GET", "/v1/tasks/"+first.ID, nil).task(t); got.DownstreamCount != 1 || got.Revision != 1 {
		t.Errorf("the prerequisite: %+v", got)
	}

	changed := h.do(t, "PATCH", path, `{"name":"Changed","risk":null,"due":null,"tags":["c"],"scope":"single"}`, "If-Match", `"1"`).wants(t, 200).task(t)
	if changed.Name != "Changed" || changed.Risk != nil || changed.Due != nil || *changed.Scope != "single" || *changed.Level != "review" || changed.Revision != 2 || !slices.Equal(changed.Tags, []string{"c"}) {
		t.Errorf("changed: %+v", changed)
	}
	h.do(t, "PATCH", path, `{"name":"x"}`, "If-Match", `"1"`).refused(t, 412, "precondition_failed")
	h.do(t, "PATCH", path, `{"risk":"huge"}`).refused(t, 400, "invalid_request", "/risk")
	h.do(t, "PATCH", path, `{"status":"completed"}`).refused(t, 400, "invalid_request", "/status")
	h.do(t, "POST", "/v1/projects/"+p+"/tasks", `{"slug":"second","name":"x"}`).refused(t, 409, "tasks_slug_key", "/slug")
	before := h.tables(t)
	h.do(t, "POST", "/v1/projects/"+p+"/tasks", `{"slug":"third","name":"x","dependsOn":["second","nothing","third "]}`).refused(t, 422, "task_dependency_not_found", "/dependsOn/1", "/dependsOn/2")
	h.do(t, "POST", "/v1/projects/"+p+"/tasks", `{"slug":"third","name":"x","dependsOn":["third"]}`).refused(t, 422, "task_dependencies_not_on_itself_check", "/dependsOnTaskId")
	h.do(t, "POST", "/v1/projects/"+p+"/tasks", `{"slug":"third","name":"x","path":"../x"}`).refused(t, 422, "tasks_path_shape_check", "/path")
	h.unchanged(t, before, "what was refused")
	h.do(t, "POST", "/v1/projects/"+first.ID+"/tasks", `{"slug":"x","name":"x"}`).refused(t, 404, "project_not_found")

	// Dependencies.
	third := h.newTask(t, p, "third", `,"priority":"critical"`)
	deps := func(id string) string { return "/v1/tasks/" + id + "/dependencies" }
	added := h.do(t, "POST", deps(third.ID), `{"dependsOnTaskId":"`+second.ID+`"}`).wants(t, 201)
	if added.header.Get("Location") != deps(third.ID)+"/"+second.ID || !slices.Equal(added.task(t).DependsOn, []string{"second"}) {
		t.Errorf("%s", added.body)
	}
	h.do(t, "POST", deps(third.ID), `{"dependsOnTaskId":"`+second.ID+`"}`).refused(t, 409, "task_dependencies_edge_key", "/dependsOnTaskId")
	h.do(t, "POST", deps(first.ID), `{"dependsOnTaskId":"`+third.ID+`"}`).refused(t, 409, "task_dependencies_acyclic", "/dependsOnTaskId")
	h.do(t, "POST", deps(first.ID), `{"dependsOnTaskId":"`+p+`"}`).refused(t, 422, "task_dependencies_depends_on_task_id_fkey", "/dependsOnTaskId")
	h.do(t, "POST", deps(p), `{"dependsOnTaskId":"`+first.ID+`"}`).refused(t, 404, "task_not_found")
	if got := h.do(t, "GET", "/v1/tasks/"+first.ID, nil).task(t).DownstreamCount; got != 2 {
		t.Errorf("downstream of the first: %d", got)
	}
	var list struct {
		Items []struct{ Slug, Status string }
	}
	h.do(t, "GET", deps(third.ID), nil).wants(t, 200).into(t, &list)
	if len(list.Items) != 1 || list.Items[0].Slug != "second" {
		t.Errorf("%+v", list)
	}
	h.do(t, "DELETE", deps(third.ID)+"/"+second.ID, nil).wants(t, 204)
	h.do(t, "DELETE", deps(third.ID)+"/"+second.ID, nil).refused(t, 404, "dependency_not_found")
	h.do(t, "DELETE", deps(p)+"/"+second.ID, nil).refused(t, 404, "task_not_found")
	h.do(t, "GET", deps(p), nil).refused(t, 404, "task_not_found")

	// Lists.
	for query, want := range map[string]string{
		"": "g/first second third", "status=pending": "g/first second third", "status=completed": "", "pathPrefix=g/": "g/first", "pathPrefix=x": "second", "tag=c": "second", "tag=a": "",
		"level=review": "second", "ready=true": "g/first third", "ready=false": "second", "slug=third": "third", "assignee=ada": "second", "archived=true": "",
	} {
		if got := slugs(h.tasksOf(t, p, query)); got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
	var page struct {
		Items      []taskBody
		NextCursor string
	}
	h.do(t, "GET", "/v1/projects/"+p+"/tasks?limit=2", nil).wants(t, 200).into(t, &page)
	h.do(t, "GET", "/v1/projects/"+p+"/tasks?tag=c&limit=2&cursor="+page.NextCursor, nil).refused(t, 400, "invalid_cursor", "query:cursor")
	if got := slugs(page.Items) + "; " + slugs(h.tasksOf(t, p, "limit=2&cursor="+page.NextCursor)); got != "g/first second; third" {
		t.Errorf("page by page: %s", got)
	}
	h.do(t, "GET", "/v1/projects/"+first.ID+"/tasks", nil).refused(t, 404, "project_not_found")

	// Put aside, a task is in nobody's way.
	h.do(t, "PATCH", "/v1/tasks/"+first.ID, `{"archived":true}`).wants(t, 200)
	if got := h.do(t, "GET", path, nil).task(t); !got.Ready || got.UnmetCount != 0 {
		t.Errorf("waits for what was put aside: %+v", got)
	}
	h.do(t, "PATCH", "/v1/tasks/"+first.ID, `{"archived":false}`).wants(t, 200)
	if h.do(t, "GET", path, nil).task(t).Ready {
		t.Error("does not wait for what was taken up again")
	}
	h.do(t, "DELETE", path, nil).wants(t, 204)
	h.do(t, "GET", path, nil).refused(t, 404, "task_not_found")
	h.do(t, "DELETE", path, nil).refused(t, 404, "task_not_found")
	h.do(t, "DELETE", "/v1/projects/"+p, nil).refused(t, 409, "tasks_project_id_fkey_in_use")
}

func TestC08_NotesAndDocument(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := h.newProject(t, "p")
	task := h.newTask(t, p, "a", `,"body":"Body.\n\n"`)
	path := "/v1/tasks/" + task.ID
	if got := string(h.do(t, "GET", path+"/document", nil).wants(t, 200).body); got != "# Task a\n\nBody.\n" {
		t.Errorf("%q", got)
	}
	session := h.newSessionIn(t, p)
	var wait sync.WaitGroup
	for n := range 64 {
		wait.Add(1)
		go func() {
			defer wait.Done()
			h.do(t, "POST", path+"/notes", fmt.Sprintf(`{"body":"note %d."}`, n), "Hub-Session", session).wants(t, 201)
		}()
	}
	wait.Wait()
	seen := map[string]bool{}
	var last string
	var page struct {
		Items      []struct{ ID, Body, AccountID, SessionID, CreatedAt string }
		NextCursor string
	}
	for query := ""; ; query = "&cursor=" + page.NextCursor {
		page.NextCursor = ""
		h.do(t, "GET", path+"/notes?limit=10"+query, nil).wants(t, 200).into(t, &page)
		for _, n := range page.Items {
			if n.CreatedAt <= last || n.AccountID != h.admin.account.String() || n.SessionID != session {
				t.Errorf("%+v after %s", n, last)
			}
			last = n.CreatedAt
			seen[n.Body] = true
		}
		if page.NextCursor == "" {
			break
		}
	}
	document := string(h.do(t, "GET", path+"/document", nil).body)
	if len(seen) != 64 || strings.Count(document, "\n### ") != 64 || !strings.HasPrefix(document, "# Task a\n\nBody.\n\n## Notes\n\n### ") {
		t.Errorf("%d notes\n%s", len(seen), document)
	}
	if list := h.do(t, "GET", "/v1/projects/"+p+"/tasks", nil).wants(t, 200); strings.Contains(string(list.body), `"body"`) || !strings.Contains(string(list.body), task.ID) {
		t.Errorf("a list has bodies: %s", list.body)
	}
	if got := h.do(t, "GET", path, nil).task(t); got.Revision != 1 || got.Body != "Body.\n\n" {
		t.Errorf("a note changed the task: %+v", got)
	}
	h.do(t, "POST", "/v1/tasks/"+p+"/notes", `{"body":"x"}`).refused(t, 404, "task_not_found")
	h.do(t, "GET", "/v1/tasks/"+p+"/notes", nil).refused(t, 404, "task_not_found")
	h.do(t, "GET", "/v1/tasks/"+p+"/document", nil).refused(t, 404, "task_not_found")
}

func TestW11_WorkOnATask(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := h.newProject(t, "p")
	first := h.newTask(t, p, "first", "")
	second := h.newTask(t, p, "second", `,"dependsOn":["first"]`)
	session := h.newSessionIn(t, p)
	verb := func(id, verb string) string { return "/v1/tasks/" + id + "/" + verb }
	body := func(mapping string) string { return `{"mappingId":"` + mapping + `","reason":"because"}` }

	h.do(t, "POST", verb(second.ID, "claim"), `{"sessionId":"`+session+`"}`).refused(t, 409, "task_not_ready")
	claimed := h.do(t, "POST", verb(first.ID, "claim"), `{"sessionId":"`+session+`","leaseSeconds":60}`).wants(t, 200).task(t)
	if claimed.Status != "in-progress" || claimed.Claim == nil || claimed.Claim.SessionID != session || claimed.StartedAt == nil || claimed.Ready {
		t.Fatalf("%+v", claimed)
	}
	claim := claimed.Claim.MappingID
	other := h.newSessionIn(t, p)
	h.do(t, "POST", verb(first.ID, "claim"), `{"sessionId":"`+other+`"}`).refused(t, 409, "task_already_claimed")
	h.do(t, "POST", verb(h.newTask(t, p, "third", "").ID, "claim"), `{"sessionId":"`+session+`"}`).refused(t, 409, "mappings_session_active_key", "/sessionId")
	h.do(t, "POST", verb(first.ID, "claim"), `{"sessionId":"`+p+`"}`).refused(t, 409, "task_already_claimed")
	h.do(t, "POST", verb(p, "claim"), `{"sessionId":"`+other+`"}`).refused(t, 404, "task_not_found")
	beat := h.do(t, "POST", verb(first.ID, "heartbeat"), `{"mappingId":"`+claim+`"}`).wants(t, 200).task(t)
	if beat.Claim.LeaseExpiresAt <= claimed.Claim.LeaseExpiresAt || beat.Revision != claimed.Revision {
		t.Errorf("%+v", beat)
	}
	h.do(t, "POST", verb(first.ID, "heartbeat"), `{"mappingId":"`+p+`"}`).refused(t, 409, "task_not_held", "/mappingId")
	h.do(t, "POST", verb(first.ID, "complete"), body(p)).refused(t, 409, "task_not_held", "/mappingId")
	h.do(t, "POST", verb(first.ID, "reopen"), `{}`).refused(t, 409, "task_status_stands_against")
	h.do(t, "POST", verb(first.ID, "block"), `{}`).refused(t, 409, "task_status_stands_against")

	failed := h.do(t, "POST", verb(first.ID, "fail"), body(claim)).wants(t, 200).task(t)
	if failed.Status != "failed" || failed.Claim != nil || failed.CompletedAt == nil {
		t.Errorf("%+v", failed)
	}
	if got := h.do(t, "GET", "/v1/tasks/"+second.ID, nil).task(t); got.FailedCount != 1 || got.Ready {
		t.Errorf("the one that waits for it: %+v", got)
	}
	h.do(t, "POST", verb(first.ID, "complete"), body(claim)).refused(t, 409, "task_not_held", "/mappingId")
	h.do(t, "POST", verb(first.ID, "claim"), `{"sessionId":"`+other+`"}`).refused(t, 409, "task_not_pending")
	h.do(t, "POST", verb(first.ID, "reopen"), `{"reason":"again"}`).wants(t, 200)
	claim = h.do(t, "POST", verb(first.ID, "claim"), `{"sessionId":"`+session+`"}`).wants(t, 200).task(t).Claim.MappingID
	if blocked := h.do(t, "POST", verb(first.ID, "block"), body(claim)).wants(t, 200).task(t); blocked.Status != "blocked" || blocked.Claim != nil {
		t.Errorf("%+v", blocked)
	}
	h.do(t, "POST", verb(first.ID, "unblock"), `{}`).wants(t, 200)
	h.do(t, "POST", verb(first.ID, "block"), `{"reason":"not yet"}`).wants(t, 200)
	h.do(t, "POST", verb(first.ID, "unblock"), `{}`).wants(t, 200)
	claim = h.do(t, "POST", verb(first.ID, "claim"), `{"sessionId":"`+session+`"}`).wants(t, 200).task(t).Claim.MappingID
	h.do(t, "POST", verb(first.ID, "release"), body(claim)).wants(t, 200)
	claim = h.do(t, "POST", verb(first.ID, "claim"), `{"sessionId":"`+other+`"}`).wants(t, 200).task(t).Claim.MappingID
	h.do(t, "POST", verb(first.ID, "complete"), body(claim)).wants(t, 200)
	if got := h.do(t, "GET", "/v1/tasks/"+second.ID, nil).task(t); got.FailedCount != 0 || !got.Ready {
		t.Errorf("the one that waited for it: %+v", got)
	}
	for _, v := range []string{"heartbeat", "release", "complete", "fail", "block"} {
		h.do(t, "POST", verb(p, v), `{"mappingId":"`+claim+`"}`).refused(t, 404, "task_not_found")
	}
	for _, v := range []string{"block", "unblock", "reopen"} {
		h.do(t, "POST", verb(p, v), `{}`).refused(t, 404, "task_not_found")
	}

	// Who moved it, when and why.
	var history struct {
		Items []struct{ FromStatus, ToStatus, Reason, AccountID, SessionID, MappingID string }
	}
	h.do(t, "GET", verb(first.ID, "status-changes"), nil).wants(t, 200).into(t, &history)
	var steps []string
	for _, c := range history.Items {
		steps = append(steps, c.ToStatus+":"+c.Reason)
		if c.AccountID != h.admin.account.String() {
			t.Errorf("%+v", c)
		}
	}
	want := "in-progress: failed:because pending:again in-progress: blocked:because pending: blocked:not yet pending: in-progress: pending:because in-progress: completed:because"
	if got := strings.Join(steps, " "); got != want {
		t.Errorf("history:\n%s, want\n%s", got, want)
	}
	h.do(t, "GET", verb(p, "status-changes"), nil).refused(t, 404, "task_not_found")

	// The mappings say the same.
	var mappings struct {
		Items []struct{ ID, Kind, Status, TaskSlug, Reason string }
	}
	h.do(t, "GET", "/v1/projects/"+p+"/mappings?taskId="+first.ID, nil).wants(t, 200).into(t, &mappings)
	steps = nil
	for _, m := range mappings.Items {
		steps = append(steps, m.Kind+":"+m.TaskSlug+":"+m.Status)
	}
	if got := strings.Join(steps, " "); got != "assignment:first:completed assignment:first:aborted assignment:first:aborted assignment:first:failed" {
		t.Error(got)
	}
}

func TestX04_TheNextTask(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := h.newProject(t, "p")
	claim := func(more string) answer {
		return h.do(t, "POST", "/v1/projects/"+p+"/tasks/claim", `{"sessionId":"`+h.newSessionIn(t, p)+`"`+more+`}`)
	}
	claim("").wants(t, 204)
	h.newTask(t, p, "plain", "")
	h.newTask(t, p, "low", `,"priority":"low"`)
	h.newTask(t, p, "high", `,"priority":"high","risk":"critical","path":"deep/high.md"`)
	h.newTask(t, p, "root", `,"tags":["a","b"],"level":"review"`)
	h.newTask(t, p, "leaf", `,"dependsOn":["root"],"priority":"critical"`)
	claim(`,"tags":["a","c"]`).wants(t, 204)
	claim(`,"level":"planning"`).wants(t, 204)
	claim(`,"pathPrefix":"dee%"`).wants(t, 204)
	claim(`,"maxRisk":"low"`).wants(t, 204) // what is not assessed counts as medium
	for _, c := range []struct{ more, want string }{
		{`,"maxRisk":"high"`, "root"}, // not high, for its risk; and root has more behind it than plain
		{`,"pathPrefix":"deep/"`, "high"},
		{"", "plain"}, {"", "low"},
	} {
		if got := claim(c.more).wants(t, 200).task(t); got.Slug != c.want || got.Status != "in-progress" {
			t.Errorf("%s: %s, want %s", c.more, got.Slug, c.want)
		}
	}
	claim("").wants(t, 204)
	h.do(t, "POST", "/v1/projects/"+p+"/tasks/claim", `{"sessionId":"`+p+`"}`).refused(t, 422, "mappings_session_id_fkey", "/sessionId")
	h.do(t, "POST", "/v1/projects/"+h.newSessionIn(t, p)+"/tasks/claim", `{"sessionId":"`+p+`"}`).refused(t, 404, "project_not_found")
	elsewhere := h.newSessionIn(t, h.newProject(t, "elsewhere"))
	h.newTask(t, p, "more", "")
	h.do(t, "POST", "/v1/projects/"+p+"/tasks/claim", `{"sessionId":"`+elsewhere+`"}`).refused(t, 422, "mappings_session_id_fkey", "/sessionId")
}

// 64 claim at once: each task has one winner, and nobody goes away empty-handed while there is one.
func TestX04_RacingClaimants(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := h.newProject(t, "p")
	sessions := make([]string, 64)
	for i := range sessions {
		sessions[i] = h.newSessionIn(t, p)
	}
	race := func(path string) (winners []taskBody, statuses map[int]int) {
		var (
			mu   sync.Mutex
			wait sync.WaitGroup
		)
		statuses = map[int]int{}
		for _, session := range sessions {
			wait.Add(1)
			go func() {
				defer wait.Done()
				a := h.do(t, "POST", path, `{"sessionId":"`+session+`"}`)
				mu.Lock()
				defer mu.Unlock()
				statuses[a.status]++
				if a.status == 200 {
					winners = append(winners, a.task(t))
				}
			}()
		}
		wait.Wait()
		return winners, statuses
	}
	one := h.newTask(t, p, "one", "")
	winners, statuses := race("/v1/tasks/" + one.ID + "/claim")
	if len(winners) != 1 || statuses[409] != 63 {
		t.Fatalf("one task: %v", statuses)
	}
	h.do(t, "POST", "/v1/tasks/"+one.ID+"/complete", `{"mappingId":"`+winners[0].Claim.MappingID+`"}`).wants(t, 200)
	h.newTask(t, p, "next", "")
	winners, statuses = race("/v1/projects/" + p + "/tasks/claim")
	if len(winners) != 1 || statuses[204] != 63 {
		t.Fatalf("the one next task: %v", statuses)
	}
	h.do(t, "POST", "/v1/tasks/"+winners[0].ID+"/complete", `{"mappingId":"`+winners[0].Claim.MappingID+`"}`).wants(t, 200)
	for i := range 64 {
		h.newTask(t, p, fmt.Sprintf("n%d", i), "")
	}
	winners, statuses = race("/v1/projects/" + p + "/tasks/claim")
	different := map[string]bool{}
	for _, w := range winners {
		different[w.ID] = true
	}
	if len(different) != 64 {
		t.Fatalf("64 tasks: %d winners of %d tasks, %v", len(winners), len(different), statuses)
	}
	// All complete at once, with one task that waits for all of them.
	h.newTask(t, p, "last", `,"dependsOn":["n`+strings.Join(numbers(64), `","n`)+`"]`)
	var wait sync.WaitGroup
	for _, w := range winners {
		wait.Add(1)
		go func() {
			defer wait.Done()
			h.do(t, "POST", "/v1/tasks/"+w.ID+"/complete", `{"mappingId":"`+w.Claim.MappingID+`"}`).wants(t, 200)
		}()
	}
	wait.Wait()
	if last := h.tasksOf(t, p, "slug=last")[0]; !last.Ready || last.UnmetCount != 0 {
		t.Errorf("%+v", last)
	}
}

func numbers(n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprint(i))
	}
	return all
}

// Who goes silent loses the task, at the latest when somebody looks for work, and cannot end the work of the next one.
func TestX04_ALeaseRunsOut(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := h.newProject(t, "p")
	task := h.newTask(t, p, "a", "")
	silent := h.do(t, "POST", "/v1/tasks/"+task.ID+"/claim", `{"sessionId":"`+h.newSessionIn(t, p)+`","leaseSeconds":1}`).wants(t, 200).task(t)
	next := h.newSessionIn(t, p)
	var taken taskBody
	eventually(t, "the task is there again", func() bool {
		a := h.do(t, "POST", "/v1/projects/"+p+"/tasks/claim", `{"sessionId":"`+next+`"}`)
		if a.status == http.StatusOK {
			taken = a.task(t)
		}
		return a.status == http.StatusOK
	})
	if taken.ID != task.ID || taken.Claim.MappingID == silent.Claim.MappingID {
		t.Errorf("%+v", taken)
	}
	h.do(t, "POST", "/v1/tasks/"+task.ID+"/complete", `{"mappingId":"`+silent.Claim.MappingID+`"}`).refused(t, 409, "task_not_held", "/mappingId")
	h.do(t, "POST", "/v1/tasks/"+task.ID+"/heartbeat", `{"mappingId":"`+silent.Claim.MappingID+`"}`).refused(t, 409, "task_not_held", "/mappingId")
	// A session that ends gives its task back at once.
	h.do(t, "PATCH", "/v1/sessions/"+next, `{"runState":"ended"}`).wants(t, 200)
	if got := h.do(t, "GET", "/v1/tasks/"+task.ID, nil).task(t); got.Status != "pending" || !got.Ready {
		t.Errorf("%+v", got)
	}
	h.do(t, "POST", "/v1/tasks/"+task.ID+"/claim", `{"sessionId":"`+next+`"}`).refused(t, 409, "mappings_session_over", "/sessionId")
}
