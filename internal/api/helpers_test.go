package api_test

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	genapi "github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/internal/api"
	"github.com/alkdev/hub/internal/apikey"
	"github.com/alkdev/hub/internal/pgjson/jsonequal"
)

// What several files of these tests need beside the harness.

// The contract, as the tests read it ------------------------------------------------------------------------------------

// contractOp is an operation of the generated document.
type contractOp struct {
	id, method, path string
	scopes           []string
	level            string // member, admin, owner
	public           bool
	media            string // of its body; "" for none
	optional         bool   // its body
	streamed         bool
	secret           bool     // its answer holds a secret
	long             bool     // it may take as long as an import
	headers          []string // the names of its header parameters
	filters          []string // the names of its query parameters that take an id
}

// operations reads all of them from the document that is served, sorted by id. It shares no code with the server.
func operations(t testing.TB) []contractOp {
	t.Helper()
	var doc struct {
		Paths      map[string]map[string]json.RawMessage
		Components struct {
			Parameters map[string]struct{ Name, In string }
		}
	}
	if err := json.Unmarshal(genapi.Contract, &doc); err != nil {
		t.Fatal(err)
	}
	var ops []contractOp
	for path, item := range doc.Paths {
		for method, text := range item {
			if !slices.Contains([]string{"get", "put", "post", "patch", "delete"}, method) {
				continue
			}
			var spec struct {
				OperationID string
				Scopes      []string `json:"x-scopes"`
				Level       string   `json:"x-level"`
				Body        string   `json:"x-body"`
				Secret      bool     `json:"x-secret"`
				Long        bool     `json:"x-long"`
				Security    *[]any
				RequestBody struct {
					Content  map[string]any
					Required bool
				}
				Parameters []struct {
					Name, In string
					Schema   struct{ Format string }
					Ref      string `json:"$ref"`
				}
			}
			if err := json.Unmarshal(text, &spec); err != nil {
				t.Fatal(err)
			}
			op := contractOp{
				id: spec.OperationID, method: strings.ToUpper(method), path: path, scopes: spec.Scopes,
				public: spec.Security != nil && len(*spec.Security) == 0, streamed: spec.Body == "stream",
				optional: !spec.RequestBody.Required, level: or(spec.Level, "member"), secret: spec.Secret, long: spec.Long,
			}
			for _, p := range spec.Parameters {
				if name, ok := strings.CutPrefix(p.Ref, "#/components/parameters/"); ok {
					p.Name, p.In = doc.Components.Parameters[name].Name, doc.Components.Parameters[name].In
				}
				if p.In == "header" {
					op.headers = append(op.headers, p.Name)
				}
				if p.In == "query" && p.Schema.Format == "uuid" && !op.streamed {
					op.filters = append(op.filters, p.Name)
				}
			}
			for media := range spec.RequestBody.Content {
				op.media = media
			}
			ops = append(ops, op)
		}
	}
	if len(ops) < 10 {
		t.Fatalf("only %d operations found in the document", len(ops))
	}
	slices.SortFunc(ops, func(a, b contractOp) int { return strings.Compare(a.id, b.id) })
	return ops
}

// allScopes are the scopes that any operation names.
func allScopes(t testing.TB) []string {
	t.Helper()
	found := map[string]bool{}
	for _, op := range operations(t) {
		for _, scope := range op.scopes {
			found[scope] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// A request that each operation answers well ----------------------------------------------------------------------------

// family is what most operations are about: a project, a session in it and a message in that; and accounts, keys and an organisation
// to do things to.
type family struct {
	org                                      string // its own
	project, emptyProject, session, message  string
	spoke                                    string // its epoch is 1; it offers fs.read, and holds runningCall and heldCall
	call, heldCall, runningCall, failingCall string
	leavingSpoke                             string
	client, rotation                         string
	part, agentRole, shelf                   string // the shelf is a session to archive
	self, account, leaver, heir, outsider    string // accounts: the holder of the keys, and members, but for the outsider
	removed                                  string // the one that removeMember removes
	key, lostKey, oldKey                     string // keys to change, to revoke, to rotate
	emptyOrg                                 string // the organisation that deleteOrganization deletes: its own, where its maker could make no other
	task, waiting, delegation, coordinator   string
	workspace, oldWorkspace                  string
	detection, settled, anomalyType          string
	held                                     map[string]held // a task for each operation that needs one in a certain state
}

// held is a task in progress, and its claim.
type held struct{ task, mapping string }

// newWork makes a family's project, session and message as this caller, an owner whose key needs *.
func (h *hub) newWork(t testing.TB, c caller) family {
	t.Helper()
	f := family{org: c.org.String(), self: c.account.String(), emptyOrg: c.org.String()}
	create := func(path, body string) answer { return h.as(t, c, "POST", path, body).wants(t, http.StatusCreated) }
	f.project = create("/v1/projects", `{"slug":"f-`+uuid.NewString()+`","name":"family"}`).id(t)
	f.emptyProject = create("/v1/projects", `{"slug":"e-`+uuid.NewString()+`","name":"empty"}`).id(t)
	f.workspace = create("/v1/projects/"+f.project+"/workspaces", `{"name":"family","path":"/srv/family"}`).id(t)
	f.oldWorkspace = create("/v1/projects/"+f.project+"/workspaces", `{"name":"old","path":"/srv/old"}`).id(t)
	f.agentRole = create("/v1/roles", `{"name":"f-`+uuid.NewString()+`"}`).id(t)
	f.session = create("/v1/sessions", `{"projectId":"`+f.project+`","title":"family"}`).id(t)
	var list struct {
		Items []struct {
			ID    string
			Parts []struct{ ID string }
		}
	}
	create("/v1/sessions/"+f.session+"/messages", `{"messages":[{"role":"user","parts":[{"type":"text","data":{"text":"hello"}}]}]}`).into(t, &list)
	f.message, f.part = list.Items[0].ID, list.Items[0].Parts[0].ID
	return f
}

// newFamily makes one as this caller, an owner whose key needs *. Where a holder is given, its self and the keys are the holder's.
func (h *hub) newFamily(t testing.TB, c caller, holder ...caller) family {
	t.Helper()
	f := h.newWork(t, c)
	create := func(path, body string) answer { return h.as(t, c, "POST", path, body).wants(t, http.StatusCreated) }
	f.shelf = create("/v1/sessions", `{"projectId":"`+f.project+`"}`).id(t)
	id := func() string { return uuid.Must(uuid.NewV7()).String() }
	f.task, f.waiting, f.delegation = id(), id(), id()
	h.exec(t, `INSERT INTO tasks (org_id, id, project_id, slug, name, path) SELECT org_id, unnest($2::uuid[]), id, unnest('{task,waiting}'::text[]), 't', 't.md' FROM projects WHERE id = $1`, f.project, []string{f.task, f.waiting})
	h.exec(t, `INSERT INTO task_dependencies (org_id, project_id, dependent_task_id, depends_on_task_id) SELECT org_id, id, $3::uuid, $2::uuid FROM projects WHERE id = $1`, f.project, f.task, f.waiting)
	var sessions, tasks, mappings []string
	f.held = map[string]held{}
	for _, verb := range []string{"heartbeat", "release", "complete", "fail", "block", "unblock", "reopen", "end", "delete"} {
		f.held[verb] = held{id(), id()}
		sessions, tasks, mappings = append(sessions, id()), append(tasks, f.held[verb].task), append(mappings, f.held[verb].mapping)
	}
	f.coordinator = sessions[1]
	h.exec(t, `INSERT INTO sessions (org_id, id, project_id) SELECT org_id, unnest($2::uuid[]), id FROM projects WHERE id = $1`, f.project, sessions)
	h.exec(t, `INSERT INTO tasks (org_id, id, project_id, slug, name, path) SELECT org_id, t, id, t, 't', 't.md' FROM projects, unnest($2::uuid[]) t WHERE id = $1`, f.project, tasks)
	h.exec(t, `INSERT INTO mappings (org_id, id, kind, project_id, session_id, task_id, lease_seconds) SELECT org_id, m, 'assignment', id, s, t, 300 FROM projects, unnest($2::uuid[], $3::uuid[], $4::uuid[]) u(s, t, m) WHERE id = $1`, f.project, sessions, tasks, mappings)
	h.exec(t, `INSERT INTO mappings (org_id, id, kind, project_id, session_id, parent_session_id) SELECT org_id, $2::uuid, 'delegation', id, $3::uuid, $4::uuid FROM projects WHERE id = $1`, f.project, f.delegation, sessions[0], f.session)
	h.exec(t, `UPDATE mappings SET status = 'completed' WHERE id = $1`, f.held["reopen"].mapping)
	h.exec(t, `UPDATE mappings SET status = 'aborted' WHERE id = $1`, f.held["unblock"].mapping)
	h.exec(t, `UPDATE tasks SET status = 'blocked' WHERE id = $1`, f.held["unblock"].task)

	f.client = create("/v1/clients", `{"name":"c-`+uuid.NewString()+`","type":"webhook","config":{"url":"https://example.com/"}}`).id(t)
	h.as(t, c, "PUT", "/v1/clients/"+f.client+"/secrets/token", `{"value":"hush"}`).wants(t, http.StatusCreated)
	h.exec(t, "INSERT INTO encryption_keys (version, fingerprint) VALUES (1000000, sha256('retired')) ON CONFLICT DO NOTHING")
	f.rotation = h.do(t, "POST", "/v1/secret-rotations", nil).wants(t, http.StatusAccepted).id(t)

	f.detection = create("/v1/detections", `{"sessionId":"`+f.session+`","anomalyType":"SESSION_STALL"}`).id(t)
	f.settled = create("/v1/detections", `{"sessionId":"`+f.session+`","anomalyType":"HIGH_ERROR_COUNT"}`).id(t)
	f.anomalyType = create("/v1/anomaly-types", `{"name":"`+anomalyName()+`"}`).id(t)

	for _, account := range []*string{&f.account, &f.leaver, &f.heir, &f.outsider} {
		*account = create("/v1/accounts", `{"kind":"human","displayName":"family"}`).id(t)
	}
	h.as(t, c, "DELETE", "/v1/members/"+f.outsider, nil).wants(t, http.StatusNoContent)
	f.removed = f.account
	if len(holder) > 0 {
		f.self = holder[0].account.String()
		f.removed = f.self
	}
	f.spoke, f.leavingSpoke, f.call, f.heldCall, f.runningCall, f.failingCall = id(), id(), id(), id(), id(), id()
	h.exec(t, `INSERT INTO spokes (org_id, id, name, account_id, lease_expires_at) SELECT $1, s, s::text, $2, now() + interval '1 hour' FROM unnest($3::uuid[]) s`, f.org, f.self, []string{f.spoke, f.leavingSpoke})
	h.exec(t, `INSERT INTO operation_specs (org_id, spoke_id, namespace, name, kind) VALUES ($1, $2, 'fs', 'read', 'query')`, f.org, f.spoke)
	h.exec(t, `INSERT INTO calls (org_id, id, routed, operation, spoke_id, caller_account_id, deadline_at, status, spoke_epoch, attempts, dispatched_at, started_at)
		SELECT $1, id, true, 'fs.read', $2, $3, now() + interval '1 hour', status, CASE WHEN status <> 'pending' THEN 1 END, (status = 'running')::int,
		CASE WHEN status <> 'pending' THEN now() END, CASE WHEN status = 'running' THEN now() END
		FROM unnest($4::uuid[], '{pending,dispatched,running,running}'::text[]) u(id, status)`, f.org, f.spoke, f.self, []string{f.call, f.heldCall, f.runningCall, f.failingCall})
	for _, key := range []*string{&f.key, &f.lostKey, &f.oldKey} {
		var created struct{ APIKey struct{ ID string } }
		create("/v1/api-keys", `{"accountId":"`+f.self+`","name":"family","scopes":["keys:write"]}`).into(t, &created)
		*key = created.APIKey.ID
	}
	if h.isPlatformAdmin(t, c) {
		var created struct{ Organization struct{ ID string } }
		create("/v1/organizations", `{"slug":"f-`+uuid.NewString()+`","name":"family"}`).into(t, &created)
		f.emptyOrg = created.Organization.ID
	}
	return f
}

// anomalyName is that of no type yet.
func anomalyName() string {
	return "F_" + strings.ToUpper(strings.ReplaceAll(uuid.NewString(), "-", "_"))
}

func (h *hub) isPlatformAdmin(t testing.TB, c caller) (is bool) {
	t.Helper()
	h.scan(t, &is, "SELECT 'platform:*' = ANY (scopes) FROM api_keys WHERE id = $1", c.id)
	return is
}

// ids are all of the family's.
func (f family) ids() []string {
	all := []string{
		f.org, f.project, f.emptyProject, f.session, f.message, f.part, f.agentRole, f.shelf, f.self, f.account, f.leaver, f.heir, f.outsider, f.key, f.lostKey, f.oldKey, f.emptyOrg, f.client,
		f.detection, f.settled, f.anomalyType, f.workspace, f.oldWorkspace, f.task, f.waiting, f.delegation, f.coordinator, f.spoke, f.leavingSpoke, f.call, f.heldCall, f.runningCall, f.failingCall,
	}
	for _, verb := range slices.Sorted(maps.Keys(f.held)) {
		all = append(all, f.held[verb].task, f.held[verb].mapping)
	}
	return all
}

// namedBy is whether a request names one of the family's rows in its path, and whether it does so elsewhere.
func (f family) namedBy(s sample) (path, elsewhere bool) {
	target, query, _ := strings.Cut(s.path, "?")
	for _, id := range f.ids() {
		path = path || strings.Contains(target, id)
		elsewhere = elsewhere || strings.Contains(query, id) || strings.Contains(s.body, id)
	}
	return path, elsewhere
}

// sample is a request, and the status of its answer.
type sample struct {
	method, path, media, body string
	status                    int
}

func (h *hub) send(t testing.TB, c caller, s sample) answer {
	t.Helper()
	if s.media == "" {
		return h.as(t, c, s.method, s.path, nil)
	}
	return h.as(t, c, s.method, s.path, s.body, "Content-Type", s.media)
}

// samples holds one request for each operation of the contract: a new operation needs one too. Where a body or query names
// other rows, they are the family's as well.
func (f family) samples() map[string]sample {
	const (
		plain = "application/json"
		merge = "application/merge-patch+json"
	)
	session, client := "/v1/sessions/"+f.session, "/v1/clients/"+f.client
	tasks, task := "/v1/projects/"+f.project+"/tasks", "/v1/tasks/"+f.task
	verb := func(name string) sample {
		return sample{"POST", "/v1/tasks/" + f.held[name].task + "/" + name, plain, `{"mappingId":"` + f.held[name].mapping + `"}`, 200}
	}
	account, organization, key := "/v1/accounts/"+f.account, "/v1/organizations/"+f.org, "/v1/api-keys/"+f.key
	spoke := "/v1/spokes/" + f.spoke
	return map[string]sample{
		"getHealth":    {"GET", "/healthz", "", "", 200},
		"getReadiness": {"GET", "/readyz", "", "", 200},
		"getVersion":   {"GET", "/v1/version", "", "", 200},
		"getMetrics":   {"GET", "/metrics", "", "", 200},

		"listClientTypes":     {"GET", "/v1/client-types", "", "", 200},
		"createClient":        {"POST", "/v1/clients", plain, `{"name":"s-` + uuid.NewString() + `","type":"llm-provider","config":{"provider":"openai"}}`, 201},
		"listClients":         {"GET", "/v1/clients", "", "", 200},
		"validateClients":     {"POST", "/v1/clients/validate", "", "", 200},
		"getClient":           {"GET", client, "", "", 200},
		"updateClient":        {"PATCH", client, merge, `{"config":{"timeoutSeconds":5}}`, 200},
		"deleteClient":        {"DELETE", client, "", "", 204},
		"listClientSecrets":   {"GET", client + "/secrets", "", "", 200},
		"putClientSecret":     {"PUT", client + "/secrets/token", plain, `{"value":"another"}`, 200},
		"getClientSecret":     {"GET", client + "/secrets/token", "", "", 200},
		"deleteClientSecret":  {"DELETE", client + "/secrets/token", "", "", 204},
		"revealClientSecret":  {"POST", client + "/secrets/token/reveal", "", "", 200},
		"listEncryptionKeys":  {"GET", "/v1/encryption-keys", "", "", 200},
		"deleteEncryptionKey": {"DELETE", "/v1/encryption-keys/1000000", "", "", 204},
		"startSecretRotation": {"POST", "/v1/secret-rotations", "", "", 202},
		"getSecretRotation":   {"GET", "/v1/secret-rotations/" + f.rotation, "", "", 200},

		"getMe":             {"GET", "/v1/me", "", "", 200},
		"createAccount":     {"POST", "/v1/accounts", plain, `{"kind":"llm","displayName":"sample"}`, 201},
		"listAccounts":      {"GET", "/v1/accounts", "", "", 200},
		"searchAccounts":    {"GET", "/v1/accounts/search?q=family", "", "", 200},
		"getAccount":        {"GET", account, "", "", 200},
		"updateAccount":     {"PATCH", "/v1/accounts/" + f.self, merge, `{"displayName":"changed"}`, 200},
		"deleteAccount":     {"DELETE", account, "", "", 204},
		"suspendAccount":    {"POST", account + "/suspend", "", "", 200},
		"activateAccount":   {"POST", account + "/activate", "", "", 200},
		"deactivateAccount": {"POST", "/v1/accounts/" + f.leaver + "/deactivate", "", "", 200},

		"createOrganization":            {"POST", "/v1/organizations", plain, `{"slug":"s-` + uuid.NewString() + `","name":"sample","ownerId":"` + f.heir + `"}`, 201},
		"listOrganizations":             {"GET", "/v1/organizations", "", "", 200},
		"getOrganization":               {"GET", organization, "", "", 200},
		"updateOrganization":            {"PATCH", organization, merge, `{"name":"changed"}`, 200},
		"deleteOrganization":            {"DELETE", "/v1/organizations/" + f.emptyOrg, "", "", 204},
		"transferOrganizationOwnership": {"POST", organization + "/transfer-ownership", plain, `{"accountId":"` + f.heir + `"}`, 200},

		"addMember":    {"POST", "/v1/members", plain, `{"accountId":"` + f.outsider + `"}`, 201},
		"listMembers":  {"GET", "/v1/members", "", "", 200},
		"getMember":    {"GET", "/v1/members/" + f.account, "", "", 200},
		"updateMember": {"PATCH", "/v1/members/" + f.account, merge, `{"membershipLevel":"admin"}`, 200},
		"removeMember": {"DELETE", "/v1/members/" + f.removed, "", "", 204},

		"createApiKey":  {"POST", "/v1/api-keys", plain, `{"accountId":"` + f.self + `","name":"sample","scopes":["keys:write"]}`, 201},
		"listApiKeys":   {"GET", "/v1/api-keys", "", "", 200},
		"getApiKey":     {"GET", key, "", "", 200},
		"updateApiKey":  {"PATCH", key, merge, `{"name":"changed"}`, 200},
		"revokeApiKey":  {"POST", "/v1/api-keys/" + f.lostKey + "/revoke", "", "", 200},
		"rotateApiKey":  {"POST", "/v1/api-keys/" + f.oldKey + "/rotate", plain, `{"graceSeconds":60}`, 201},
		"enableApiKey":  {"POST", key + "/enable", "", "", 200},
		"disableApiKey": {"POST", key + "/disable", "", "", 200},

		"listAuditLogs":      {"GET", "/v1/audit-logs", "", "", 200},
		"exportAuditLogs":    {"GET", "/v1/audit-logs/export?action=organization.create", "", "", 200},
		"verifyAuditLog":     {"GET", "/v1/audit-logs/verification", "", "", 200},
		"getRetentionPolicy": {"GET", "/v1/retention-policy", "", "", 200},
		"setRetentionPolicy": {"PATCH", "/v1/retention-policy", merge, `{"auditDays":400}`, 200},

		"createProject": {"POST", "/v1/projects", plain, `{"slug":"s-` + uuid.NewString() + `","name":"sample"}`, 201},
		"listProjects":  {"GET", "/v1/projects", "", "", 200},
		"getProject":    {"GET", "/v1/projects/" + f.project, "", "", 200},
		"updateProject": {"PATCH", "/v1/projects/" + f.project, merge, `{"name":"changed"}`, 200},
		"deleteProject": {"DELETE", "/v1/projects/" + f.emptyProject, "", "", 204},

		"createWorkspace": {"POST", "/v1/projects/" + f.project + "/workspaces", plain, `{"name":"` + uuid.NewString() + `","path":"/srv/x"}`, 201},
		"listWorkspaces":  {"GET", "/v1/projects/" + f.project + "/workspaces", "", "", 200},
		"getWorkspace":    {"GET", "/v1/workspaces/" + f.workspace, "", "", 200},
		"updateWorkspace": {"PATCH", "/v1/workspaces/" + f.workspace, merge, `{"branch":"changed"}`, 200},
		"deleteWorkspace": {"DELETE", "/v1/workspaces/" + f.oldWorkspace, "", "", 204},

		"createRole": {"POST", "/v1/roles", plain, `{"name":"r-` + uuid.NewString() + `"}`, 201},
		"listRoles":  {"GET", "/v1/roles", "", "", 200},
		"getRole":    {"GET", "/v1/roles/" + f.agentRole, "", "", 200},
		"updateRole": {"PATCH", "/v1/roles/" + f.agentRole, merge, `{"prompt":"changed"}`, 200},
		"deleteRole": {"DELETE", "/v1/roles/" + f.agentRole, "", "", 204},
		"syncRoles":  {"POST", "/v1/roles/sync", plain, `{"fileSet":"sample","files":[{"path":"agents/s-` + uuid.NewString() + `.md","content":"x"}]}`, 200},

		"createSession":     {"POST", "/v1/sessions", plain, `{"projectId":"` + f.project + `","parentId":"` + f.session + `"}`, 201},
		"listSessions":      {"GET", "/v1/sessions", "", "", 200},
		"getSession":        {"GET", session, "", "", 200},
		"updateSession":     {"PATCH", session, merge, `{"title":"changed"}`, 200},
		"deleteSession":     {"DELETE", session, "", "", 204},
		"importSession":     {"POST", "/v1/sessions/import?projectId=" + f.project, plain, export{id: "ses_" + uuid.NewString()}.String(), 201},
		"exportSession":     {"GET", session + "/export", "", "", 200},
		"appendMessage":     {"POST", session + "/messages", plain, `{"messages":[{"role":"user"}]}`, 201},
		"listMessages":      {"GET", session + "/messages", "", "", 200},
		"deleteMessage":     {"DELETE", session + "/messages/" + f.message, "", "", 204},
		"searchSessions":    {"GET", "/v1/sessions/search?q=hello", "", "", 200},
		"getUIMessages":     {"GET", session + "/ui-messages", "", "", 200},
		"archiveSession":    {"POST", "/v1/sessions/" + f.shelf + "/archive", "", "", 200},
		"unarchiveSession":  {"POST", "/v1/sessions/" + f.shelf + "/unarchive", "", "", 200},
		"forkSession":       {"POST", session + "/fork", plain, `{"title":"forked"}`, 201},
		"listChildSessions": {"GET", session + "/children", "", "", 200},
		"getSessionUsage":   {"GET", session + "/usage", "", "", 200},
		"exportSessionTree": {"GET", session + "/export/tree", "", "", 200},
		"importSessionTree": {"POST", "/v1/sessions/import/tree?projectId=" + f.project, "application/zip", zipped("tree.json", export{id: "ses_" + uuid.NewString()}.String()), 200},
		"getMessage":        {"GET", session + "/messages/" + f.message, "", "", 200},

		"followEvents": {"GET", "/v1/events", "", "", 200},

		"appendParts":     {"POST", session + "/parts", plain, `{"messageId":"` + f.message + `","parts":[{"type":"text","data":{"text":"more"}}]}`, 201},
		"listParts":       {"GET", session + "/parts", "", "", 200},
		"getPart":         {"GET", session + "/parts/" + f.part, "", "", 200},
		"updatePart":      {"PATCH", session + "/parts/" + f.part, merge, `{"data":{"synthetic":true}}`, 200},
		"appendPartDelta": {"POST", session + "/parts/" + f.part + "/deltas", plain, `{"offset":5,"text":"!"}`, 200},

		"createTask":            {"POST", tasks, plain, `{"slug":"` + uuid.NewString() + `","name":"sample","dependsOn":["task"]}`, 201},
		"listTasks":             {"GET", tasks, "", "", 200},
		"claimNextTask":         {"POST", tasks + "/claim", plain, `{"sessionId":"` + f.session + `","pathPrefix":"nowhere/"}`, 204},
		"syncTasks":             {"POST", tasks + "/sync", plain, `{"files":[{"path":"synced.md","text":"---\nid: synced\nname: synced\n---\n"}]}`, 200},
		"listTaskFiles":         {"GET", tasks + "/files", "", "", 200},
		"getTaskGraph":          {"GET", tasks + "/graph", "", "", 200},
		"getTaskCosts":          {"GET", tasks + "/costs", "", "", 200},
		"getTask":               {"GET", task, "", "", 200},
		"updateTask":            {"PATCH", task, merge, `{"name":"changed"}`, 200},
		"deleteTask":            {"DELETE", "/v1/tasks/" + f.held["delete"].task, "", "", 204},
		"claimTask":             {"POST", task + "/claim", plain, `{"sessionId":"` + f.session + `"}`, 200},
		"heartbeatClaim":        verb("heartbeat"),
		"releaseTask":           verb("release"),
		"completeTask":          verb("complete"),
		"failTask":              verb("fail"),
		"blockTask":             verb("block"),
		"unblockTask":           {"POST", "/v1/tasks/" + f.held["unblock"].task + "/unblock", plain, `{"reason":"sample"}`, 200},
		"reopenTask":            {"POST", "/v1/tasks/" + f.held["reopen"].task + "/reopen", plain, `{"reason":"sample"}`, 200},
		"listTaskStatusChanges": {"GET", task + "/status-changes", "", "", 200},
		"listDependencies":      {"GET", task + "/dependencies", "", "", 200},
		"addDependency":         {"POST", "/v1/tasks/" + f.held["unblock"].task + "/dependencies", plain, `{"dependsOnTaskId":"` + f.task + `"}`, 201},
		"removeDependency":      {"DELETE", "/v1/tasks/" + f.waiting + "/dependencies/" + f.task, "", "", 204},
		"addTaskNote":           {"POST", "/v1/tasks/" + f.waiting + "/notes", plain, `{"body":"sample"}`, 201},
		"listTaskNotes":         {"GET", task + "/notes", "", "", 200},
		"getTaskDocument":       {"GET", task + "/document", "", "", 200},

		"createMapping": {"POST", "/v1/mappings", plain, `{"kind":"placement","sessionId":"` + f.session + `","spokeId":"` + f.spoke + `","workspaceId":"` + f.workspace + `"}`, 201},
		"listMappings":  {"GET", "/v1/projects/" + f.project + "/mappings", "", "", 200},
		"getMapping":    {"GET", "/v1/mappings/" + f.delegation, "", "", 200},
		"endMapping":    {"POST", "/v1/mappings/" + f.held["end"].mapping + "/end", plain, `{"status":"failed"}`, 200},

		"reportDetection":      {"POST", "/v1/detections", plain, `{"sessionId":"` + f.session + `","anomalyType":"MODEL_DEGRADATION","evidence":{"a":1}}`, 201},
		"listDetections":       {"GET", "/v1/detections", "", "", 200},
		"getDetection":         {"GET", "/v1/detections/" + f.detection, "", "", 200},
		"acknowledgeDetection": {"POST", "/v1/detections/" + f.detection + "/acknowledge", "", "", 200},
		"resolveDetection":     {"POST", "/v1/detections/" + f.settled + "/resolve", plain, `{"resolution":"fixed"}`, 200},
		"createAnomalyType":    {"POST", "/v1/anomaly-types", plain, `{"name":"` + anomalyName() + `"}`, 201},
		"listAnomalyTypes":     {"GET", "/v1/anomaly-types", "", "", 200},
		"getAnomalyType":       {"GET", "/v1/anomaly-types/" + f.anomalyType, "", "", 200},
		"updateAnomalyType":    {"PATCH", "/v1/anomaly-types/" + f.anomalyType, merge, `{"severity":"low"}`, 200},
		"deleteAnomalyType":    {"DELETE", "/v1/anomaly-types/" + f.anomalyType, "", "", 204},
		"getWatchPolicy":       {"GET", "/v1/watch-policy", "", "", 200},
		"setWatchPolicy":       {"PATCH", "/v1/watch-policy", merge, `{"stallMinutes":30}`, 200},

		"registerSpoke":   {"POST", "/v1/spokes", plain, `{"name":"s-` + uuid.NewString() + `"}`, 200},
		"listSpokes":      {"GET", "/v1/spokes", "", "", 200},
		"getSpoke":        {"GET", spoke, "", "", 200},
		"heartbeatSpoke":  {"POST", spoke + "/heartbeat", plain, `{"epoch":1}`, 200},
		"disconnectSpoke": {"POST", "/v1/spokes/" + f.leavingSpoke + "/disconnect", plain, `{"epoch":1}`, 200},
		"putOperations":   {"PUT", spoke + "/operations", plain, `{"epoch":1,"operations":[{"namespace":"fs","name":"read","kind":"query"}]}`, 200},
		"callOperation":   {"POST", "/v1/operations/fs." + f.spoke + ".read/call", plain, `{"waitSeconds":0}`, 202},
		"takeCalls":       {"POST", spoke + "/take", plain, `{"epoch":1,"waitSeconds":0}`, 200},
		"startCall":       {"POST", "/v1/calls/" + f.heldCall + "/start", plain, `{"epoch":1,"spokeId":"` + f.spoke + `"}`, 200},
		"completeCall":    {"POST", "/v1/calls/" + f.runningCall + "/complete", plain, `{"epoch":1,"spokeId":"` + f.spoke + `","output":{}}`, 200},
		"failCall":        {"POST", "/v1/calls/" + f.failingCall + "/fail", plain, `{"epoch":1,"spokeId":"` + f.spoke + `","code":"x"}`, 200},
		"abortCall":       {"POST", "/v1/calls/" + f.call + "/abort", plain, `{"reason":"enough"}`, 200},
		"recordCall":      {"POST", "/v1/calls", plain, `{"requestId":"s-` + uuid.NewString() + `","operation":"x.y","status":"running","parentId":"` + f.call + `"}`, 201},
		"listCalls":       {"GET", "/v1/calls", "", "", 200},
		"getCall":         {"GET", "/v1/calls/" + f.call, "", "", 200},
		"getCallTree":     {"GET", "/v1/calls/" + f.call + "/tree", "", "", 200},
		"getCallStats":    {"GET", "/v1/calls/stats?since=2026-01-01T00:00:00Z&until=2036-01-01T00:00:00Z", "", "", 200},
		"addCallEdges":    {"POST", "/v1/calls/" + f.call + "/edges", plain, `{"edges":[{"targetCallId":"` + f.heldCall + `","type":"depends_on"}]}`, 200},
		"listCallEdges":   {"GET", "/v1/calls/" + f.call + "/edges", "", "", 200},
		"listOperations":  {"GET", "/v1/operations", "", "", 200},
		"getOperation":    {"GET", "/v1/operations/fs." + f.spoke + ".read", "", "", 200},
	}
}

// sampleOf is an operation's sample; an operation without one fails the test.
func (f family) sampleOf(t testing.TB, op contractOp) (s sample, ok bool) {
	t.Helper()
	if s, ok = f.samples()[op.id]; !ok {
		t.Errorf("%s has no sample: add one to family.samples in helpers_test.go", op.id)
	}
	return s, ok
}

// Exports ------------------------------------------------------------------------------------------------------------

// export is an opencode export in the making. Its texts are JSON, so that tests decide how a value is spelled.
type export struct {
	id       string
	title    string // JSON; "" for a plain one
	times    string // JSON; "" for 1000 and 2000
	info     string // more members of info, each with a comma before it
	more     string // more members at the top, each with a comma before it
	messages []exportMessage
}

type exportMessage struct {
	id      string
	session string // the mention of the session's id; "" for the right one
	role    string // "" for user
	created string // JSON; "" for 1500
	info    string // more members of info, each with a comma before it
	more    string // more members beside info and parts, each with a comma before it
	parts   []exportPart
}

type exportPart struct {
	id, session, message string // session and message: "" for the right ones
	kind                 string // "" for text
	more                 string // more members, each with a comma before it
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

func (e export) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, `{"info":{"id":%q,"title":%s,"version":"1.18.33","time":%s%s},"messages":[`,
		e.id, or(e.title, `"an export"`), or(e.times, `{"created":1000,"updated":2000}`), e.info)
	for i, m := range e.messages {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"info":{"id":%q,"sessionID":%q,"role":%q,"time":{"created":%s}%s},"parts":[`, m.id, or(m.session, e.id), or(m.role, "user"), or(m.created, "1500"), m.info)
		for j, p := range m.parts {
			if j > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, `{"id":%q,"sessionID":%q,"messageID":%q,"type":%q%s}`, p.id, or(p.session, e.id), or(p.message, m.id), or(p.kind, "text"), p.more)
		}
		b.WriteString(`]` + m.more + `}`)
	}
	b.WriteString(`]` + e.more + `}`)
	return b.String()
}

// numbered is an export with so many messages of so many parts each, whose texts hold the mark.
func numbered(id, updated, mark string, messages, parts int) export {
	e := export{id: id, times: `{"created":1000,"updated":` + updated + `}`, info: `,"agent":"build"`}
	for i := range messages {
		m := exportMessage{id: fmt.Sprintf("%s_m%d", id, i), created: fmt.Sprint(1000 + i), info: fmt.Sprintf(`,"mark":%q,"cost":1.50e-3`, mark)}
		for j := range parts {
			m.parts = append(m.parts, exportPart{id: fmt.Sprintf("%s_m%d_p%d", id, i, j), more: fmt.Sprintf(`,"text":"%s %d %d"`, mark, i, j)})
		}
		e.messages = append(e.messages, m)
	}
	return e
}

// zipped is an archive of files: name, text, ....
func zipped(files ...string) string {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		file, err := w.Create(files[i])
		if err == nil {
			_, err = io.WriteString(file, files[i+1])
		}
		if err != nil {
			panic(err) // a buffer
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.String()
}

const testdata = "../opencode/testdata"

// realExports are the files of the real opencode, by name.
func realExports(t testing.TB) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(testdata, "*.json"))
	if err != nil || len(names) < 19 {
		t.Fatalf("%d exports in %s: %v", len(names), testdata, err)
	}
	files := map[string][]byte{}
	for _, name := range names {
		if files[filepath.Base(name)], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// imported is the answer to an import.
type imported struct {
	ID, Result      string
	Messages, Parts importCounts
}

type importCounts struct{ Created, Updated, Deleted, Unchanged int }

func (h *hub) importFile(t testing.TB, c caller, project string, file any) answer {
	t.Helper()
	if e, ok := file.(export); ok {
		file = e.String()
	}
	return h.as(t, c, "POST", "/v1/sessions/import?projectId="+project, file)
}

// imports a file as the admin, with this result.
func (h *hub) imports(t testing.TB, project string, file any, result string) imported {
	t.Helper()
	a := h.importFile(t, h.admin, project, file)
	status := http.StatusOK
	if result == "created" {
		status = http.StatusCreated
	}
	var in imported
	a.wants(t, status).into(t, &in)
	if in.Result != result {
		t.Fatalf("the result is %s, want %s: %s", in.Result, result, a.body)
	}
	return in
}

func (h *hub) export(t testing.TB, session string) []byte {
	t.Helper()
	return h.do(t, "GET", "/v1/sessions/"+session+"/export", nil).wants(t, http.StatusOK).body
}

// wantExport fails the test unless the session's export has exactly these values.
func (h *hub) wantExport(t testing.TB, session string, want []byte) {
	t.Helper()
	wantJSON(t, "the export", h.export(t, session), want)
}

func wantJSON(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if d := jsonequal.Diff(want, got); d != nil {
		t.Fatalf("%s: %v (wanted != got)", what, d)
	}
}

// Looking behind the server -------------------------------------------------------------------------------------------

// tables are all rows of all tables: each table's number of rows and a checksum.
type tables map[string]string

func (h *hub) tables(t testing.TB) tables {
	t.Helper()
	rows, err := h.owner.Query(t.Context(), "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	if rows.Err() != nil || len(names) < 10 {
		t.Fatalf("%d tables: %v", len(names), rows.Err())
	}
	all := tables{}
	for _, name := range names {
		all[name] = h.sumOf(t, name, "true")
	}
	return all
}

// sumOf is different after a row was added, removed or altered.
func (h *hub) sumOf(t testing.TB, table, condition string, args ...any) (sum string) {
	t.Helper()
	h.scan(t, &sum, `SELECT count(*) || ' rows ' || coalesce(bit_xor(hashtextextended(r::text, 0)), 0) FROM public."`+table+`" r WHERE `+condition, args...)
	return sum
}

// unchanged fails the test if any row was added, removed or altered since.
func (h *hub) unchanged(t testing.TB, since tables, what string) {
	t.Helper()
	for name, now := range h.tables(t) {
		if since[name] != now {
			t.Errorf("%s: the table %s changed: %s, before %s", what, name, now, since[name])
		}
	}
}

// count is the number that a query gives.
func (h *hub) count(t testing.TB, sql string, args ...any) (n int) {
	t.Helper()
	h.scan(t, &n, sql, args...)
	return n
}

// logBuffer is a log that can be read while the server writes it.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logBuffer) configure(c *api.Config, _ *pgxpool.Config) {
	c.Log = slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// waitFor waits until the log holds the text: the server writes a request's line after its answer.
func (l *logBuffer) waitFor(t testing.TB, text string) {
	t.Helper()
	eventually(t, "the log holds "+text, func() bool { return strings.Contains(l.String(), text) })
}

// eventually waits until a condition holds, for a long time on a busy machine.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// Requests that http.Client does not send ------------------------------------------------------------------------------

// raw sends these bytes, closes its side of the connection if told so, and reads one answer. Line ends are \n in the text.
func (h *hub) raw(t testing.TB, head, body string, halfClose bool) answer {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(h.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
		t.Fatal(err)
	}
	head = strings.ReplaceAll(head, "\n", "\r\n") + "\r\n\r\n"
	if _, err := io.WriteString(conn, head+body); err != nil {
		t.Fatal(err)
	}
	if halfClose {
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	method, _, _ := strings.Cut(head, " ")
	response, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("no answer to %q: %v", head, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header, text}
}

// head is a request's head with the caller's key and more lines, each with a line end before it.
func (c caller) head(method, target, more string) string {
	return method + " " + target + " HTTP/1.1\nHost: hub\nAuthorization: Bearer " + c.key + more
}

// problemBody is what a refusal says.
type problemBody struct {
	Type, Title, Detail, Instance, Code, RequestID string
	Status                                         int
	Errors                                         []struct{ Pointer, Message string }
}

func (a answer) problem(t testing.TB) (p problemBody) {
	t.Helper()
	if a.header.Get("Content-Type") != "application/problem+json" {
		t.Fatalf("status %d of type %q is no problem: %s", a.status, a.header.Get("Content-Type"), a.body)
	}
	a.into(t, &p)
	return p
}

// unknownKey is in form, and nobody's.
func unknownKey() string { return apikey.New() }

// begin starts a transaction on a connection of its own, and returns what runs statements in it; it ends with the test.
func (h *hub) begin(t testing.TB) func(sql string, args ...any) {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), h.owner.Config().Copy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	run := func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	run("BEGIN")
	return run
}

// waiting is how many of the server's statements wait for a lock.
func (h *hub) waiting() (n int) {
	conn, err := pgx.ConnectConfig(context.Background(), h.owner.Config().Copy())
	if err != nil {
		return 0
	}
	defer conn.Close(context.Background())
	_ = conn.QueryRow(context.Background(), "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'").Scan(&n)
	return n
}
