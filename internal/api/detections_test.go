package api_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// detected is a detection as the API tells it.
type detected struct {
	ID, ProjectID, SessionID, AnomalyType, Severity, Origin, Status, Reason string
	Resolution, AcknowledgedByID, ResolvedByID, AcknowledgedAt, ResolvedAt  *string
	Count, Revision                                                         int
	Evidence                                                                json.RawMessage
}

func (a answer) detection(t testing.TB) (d detected) {
	t.Helper()
	a.into(t, &d)
	return d
}

func TestW21_DetectionsFromBeginningToEnd(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := h.newProject(t, "p")
	s, other := h.newSessionIn(t, p), h.newSessionIn(t, p)
	body := func(more string) string { return `{"sessionId":"` + s + `","anomalyType":"SESSION_STALL"` + more + `}` }

	a := h.do(t, "POST", "/v1/detections", body(`,"evidence":{"n":1.0},"metadata":{"_x":{}}`)).wants(t, 201)
	d := a.detection(t)
	path := "/v1/detections/" + d.ID
	if a.header.Get("Location") != path || a.header.Get("ETag") != `"1"` || d.ProjectID != p || d.Severity != "medium" || d.Origin != "api" || d.Status != "open" || d.Count != 1 || d.Resolution != nil {
		t.Errorf("%v %s", a.header, a.body)
	}
	wantJSON(t, "got", h.do(t, "GET", path, nil).wants(t, 200).body, a.body)

	// The same again is the same.
	a = h.do(t, "POST", "/v1/detections", body(`,"severity":"high"`)).wants(t, 200)
	if d = a.detection(t); "/v1/detections/"+d.ID != path || d.Count != 2 || d.Severity != "high" || d.Revision != 2 || a.header.Get("ETag") != `"2"` || !strings.Contains(string(d.Evidence), `"n"`) {
		t.Errorf("%s", a.body)
	}
	if d = h.do(t, "POST", "/v1/detections", body(`,"severity":"low","evidence":{"m":2}`)).wants(t, 200).detection(t); d.Count != 3 || d.Severity != "high" || string(d.Evidence) != `{"m":2}` {
		t.Errorf("%+v", d)
	}
	second := h.do(t, "POST", "/v1/detections", `{"sessionId":"`+other+`","anomalyType":"HIGH_ERROR_COUNT"}`).wants(t, 201).id(t)

	for _, c := range []struct {
		body    string
		status  int
		code    string
		pointer string
	}{
		{`{"anomalyType":"SESSION_STALL"}`, 400, "invalid_request", "/sessionId"},
		{`{"sessionId":"` + s + `"}`, 400, "invalid_request", "/anomalyType"},
		{body(`,"severity":"none"`), 400, "invalid_request", "/severity"},
		{body(`,"evidence":[]`), 400, "invalid_request", "/evidence"},
		{body(`,"count":7`), 400, "invalid_request", "/count"},
		{`{"sessionId":"` + s + `","anomalyType":"NONSENSE"}`, 422, "detections_anomaly_type_fkey", "/anomalyType"},
		{`{"sessionId":"` + p + `","anomalyType":"SESSION_STALL"}`, 422, "detections_session_id_fkey", "/sessionId"},
		{body(`,"metadata":{"x":{}}`), 422, "detections_metadata_check", "/metadata"},
	} {
		h.do(t, "POST", "/v1/detections", c.body).refused(t, c.status, c.code, c.pointer)
	}

	for query, want := range map[string]int{
		"": 2, "sessionId=" + s: 1, "projectId=" + p: 2, "projectId=" + s: 0, "anomalyType=SESSION_STALL": 1, "anomalyType=NONSENSE": 0, "status=open": 2, "status=resolved": 0, "severity=high": 2, "severity=low": 0,
		"severity=high&anomalyType=HIGH_ERROR_COUNT": 1,
	} {
		if got := len(h.page(t, h.admin, "/v1/detections?"+query, "id").values); got != want {
			t.Errorf("%s: %d, want %d", query, got, want)
		}
	}
	if got := h.page(t, h.admin, "/v1/detections?limit=1", "id").values; !slices.Equal(got, []string{second}) {
		t.Errorf("the newest first: %v", got)
	}

	// Somebody looks after it, and it is done.
	me := h.admin.account.String()
	d = h.do(t, "POST", path+"/acknowledge", nil).wants(t, 200).detection(t)
	if d.Status != "acknowledged" || value(d.AcknowledgedByID) != me || d.AcknowledgedAt == nil {
		t.Errorf("%+v", d)
	}
	if again := h.do(t, "POST", path+"/acknowledge", nil).wants(t, 200).detection(t); again.Revision != d.Revision {
		t.Errorf("acknowledged twice: %+v", again)
	}
	h.do(t, "POST", path+"/resolve", `{"resolution":"over"}`).refused(t, 400, "invalid_request", "/resolution")
	h.do(t, "POST", path+"/resolve", `{}`).refused(t, 400, "invalid_request", "/resolution")
	d = h.do(t, "POST", path+"/resolve", `{"resolution":"false-positive","reason":"a long build"}`).wants(t, 200).detection(t)
	if d.Status != "resolved" || value(d.Resolution) != "false-positive" || d.Reason != "a long build" || value(d.ResolvedByID) != me || d.ResolvedAt == nil || d.AcknowledgedAt == nil {
		t.Errorf("%+v", d)
	}
	h.do(t, "POST", path+"/resolve", `{"resolution":"false-positive","reason":"a long build"}`).wants(t, 200) // nothing changes
	h.do(t, "POST", path+"/resolve", `{"resolution":"fixed"}`).refused(t, 409, "detections_resolved_final")
	h.do(t, "POST", path+"/acknowledge", nil).refused(t, 409, "detections_status_transition")
	if next := h.do(t, "POST", "/v1/detections", body("")).wants(t, 201).detection(t); next.ID == d.ID || next.Count != 1 {
		t.Errorf("%+v", next)
	}
	for _, verb := range []string{"/acknowledge", "/resolve"} {
		h.do(t, "POST", "/v1/detections/"+p+verb, map[string]any{"/acknowledge": nil, "/resolve": `{"resolution":"fixed"}`}[verb]).refused(t, 404, "detection_not_found")
	}
	h.do(t, "GET", "/v1/detections/"+p, nil).refused(t, 404, "detection_not_found")

	// They go with their session.
	h.do(t, "DELETE", "/v1/sessions/"+s, nil).wants(t, 204)
	h.do(t, "GET", path, nil).refused(t, 404, "detection_not_found")
}

// A key that is limited to projects reports and sees what is wrong there, and nothing else.
func TestW21_LimitedKeysAndStrangers(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ours, theirs := h.newProject(t, "ours"), h.newProject(t, "theirs")
	s, elsewhere := h.newSessionIn(t, ours), h.newSessionIn(t, theirs)
	hidden := h.do(t, "POST", "/v1/detections", `{"sessionId":"`+elsewhere+`","anomalyType":"SESSION_STALL"}`).wants(t, 201).id(t)
	limited := h.newCaller(t, h.admin.org, "*")
	h.exec(t, "UPDATE organization_members SET membership_level = 'admin' WHERE account_id = $1", limited.account)
	h.exec(t, `UPDATE api_keys SET resources = ARRAY['project:' || $2::text] WHERE account_id = $1`, limited.account, ours)
	h.as(t, limited, "POST", "/v1/detections", `{"sessionId":"`+s+`","anomalyType":"SESSION_STALL"}`).wants(t, 201)
	h.as(t, limited, "POST", "/v1/detections", `{"sessionId":"`+elsewhere+`","anomalyType":"HIGH_ERROR_COUNT"}`).refused(t, 422, "detections_session_id_fkey", "/sessionId")
	h.as(t, limited, "GET", "/v1/detections/"+hidden, nil).refused(t, 404, "detection_not_found")
	h.as(t, limited, "POST", "/v1/detections/"+hidden+"/acknowledge", nil).refused(t, 404, "detection_not_found")
	if n := len(h.page(t, limited, "/v1/detections", "id").values); n != 1 {
		t.Errorf("it sees %d", n)
	}
	builtIn := h.page(t, limited, "/v1/anomaly-types", "id").values[0]
	// What all projects share it does not change: a limited key ranks as a member's (and the triggers _beyond_limits would refuse it).
	h.as(t, limited, "PATCH", "/v1/anomaly-types/"+builtIn, `{"severity":"low"}`).refused(t, 403, "insufficient_level")
	h.as(t, limited, "PATCH", "/v1/watch-policy", `{"stallMinutes":1}`).refused(t, 403, "insufficient_level")
	stranger := h.newCaller(t, uuid.Nil, "*")
	h.as(t, stranger, "POST", "/v1/detections", `{"sessionId":"`+s+`","anomalyType":"SESSION_STALL"}`).refused(t, 422, "detections_session_id_fkey", "/sessionId")
	if n := len(h.page(t, stranger, "/v1/detections?projectId="+ours, "id").values); n != 0 {
		t.Errorf("a stranger sees %d", n)
	}
}

func TestW21_AnomalyTypesFromBeginningToEnd(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	if got := h.page(t, h.admin, "/v1/anomaly-types?limit=2", "name").values; !slices.Equal(got, []string{"HIGH_ERROR_COUNT", "MODEL_DEGRADATION"}) {
		t.Errorf("%v", got)
	}
	a := h.do(t, "POST", "/v1/anomaly-types", `{"name":"PROMPT_INJECTION","severity":"critical","description":"orders"}`).wants(t, 201)
	path := a.header.Get("Location")
	var typ struct {
		Name, Severity, Description string
		BuiltIn                     bool
		Revision                    int
	}
	a.into(t, &typ)
	if path != "/v1/anomaly-types/"+a.id(t) || typ.Severity != "critical" || typ.BuiltIn || typ.Revision != 1 {
		t.Errorf("%s %s", path, a.body)
	}
	wantJSON(t, "got", h.do(t, "GET", path, nil).wants(t, 200).body, a.body)
	h.do(t, "POST", "/v1/anomaly-types", `{"name":"PROMPT_INJECTION"}`).refused(t, 409, "anomaly_types_name_key", "/name")
	h.do(t, "POST", "/v1/anomaly-types", `{"name":"SESSION_STALL"}`).refused(t, 409, "anomaly_types_name_key", "/name")
	for _, name := range []string{"x", "A-B", "_A", "A__B", strings.Repeat("A", 101)} {
		h.do(t, "POST", "/v1/anomaly-types", `{"name":"`+name+`"}`).refused(t, 400, "invalid_request", "/name")
	}
	h.do(t, "PATCH", path, `{"name":"X"}`).refused(t, 400, "invalid_request", "/name")
	h.do(t, "PATCH", path, `{"severity":"low"}`, "If-Match", `"7"`).refused(t, 412, "precondition_failed")
	h.do(t, "PATCH", path, `{"severity":"low"}`, "If-Match", `"1"`).wants(t, 200).into(t, &typ)
	if typ.Severity != "low" || typ.Description != "orders" || typ.Revision != 2 {
		t.Errorf("%+v", typ)
	}
	s := h.newSessionIn(t, h.newProject(t, "p"))
	d := h.do(t, "POST", "/v1/detections", `{"sessionId":"`+s+`","anomalyType":"PROMPT_INJECTION"}`).wants(t, 201).detection(t)
	if d.Severity != "low" {
		t.Errorf("%+v", d)
	}
	h.do(t, "DELETE", path, nil).refused(t, 409, "detections_anomaly_type_fkey_in_use")
	h.do(t, "DELETE", "/v1/sessions/"+s, nil).wants(t, 204)
	h.do(t, "DELETE", path, nil, "If-Match", `"1"`).refused(t, 412, "precondition_failed")
	h.do(t, "DELETE", path, nil).wants(t, 204)
	h.do(t, "DELETE", path, nil).refused(t, 404, "anomaly_type_not_found")
	h.do(t, "GET", path, nil).refused(t, 404, "anomaly_type_not_found")
	h.do(t, "PATCH", path, `{"severity":"low"}`).refused(t, 404, "anomaly_type_not_found")
	builtIn := h.page(t, h.admin, "/v1/anomaly-types", "id").values[0]
	h.do(t, "DELETE", "/v1/anomaly-types/"+builtIn, nil).refused(t, 409, "anomaly_types_built_in")
	h.do(t, "PATCH", "/v1/anomaly-types/"+builtIn, `{"severity":"critical"}`).wants(t, 200)
	// Each organisation has its own.
	stranger := h.newCaller(t, uuid.Nil, "*")
	h.as(t, stranger, "GET", "/v1/anomaly-types/"+builtIn, nil).refused(t, 404, "anomaly_type_not_found")
	if got := h.page(t, stranger, "/v1/anomaly-types", "name").values; !slices.Equal(got, []string{"HIGH_ERROR_COUNT", "MODEL_DEGRADATION", "SESSION_STALL"}) {
		t.Errorf("%v", got)
	}
}

func TestW21_WatchPolicy(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	admin, member := h.newMember(t, owner.org, "admin", "*"), h.newMember(t, owner.org, "member", "*")
	type policy struct {
		StallMinutes, ErrorCount, ModelMinutes, ReportedDays                                           *int
		ErrorMinutes, ModelBaselineHours, ModelTurns, ModelErrorPercent, ModelLatencyPercent, Revision int
	}
	var p policy
	h.as(t, member, "GET", "/v1/watch-policy", nil).wants(t, 200).into(t, &p)
	if *p.StallMinutes != 15 || *p.ErrorCount != 10 || p.ErrorMinutes != 15 || *p.ModelMinutes != 30 || p.ModelBaselineHours != 24 || p.ModelTurns != 20 || p.ModelErrorPercent != 25 || p.ModelLatencyPercent != 300 || *p.ReportedDays != 30 || p.Revision != 1 {
		t.Errorf("%+v", p)
	}
	h.as(t, member, "PATCH", "/v1/watch-policy", `{"stallMinutes":1}`).refused(t, 403, "insufficient_level")
	h.as(t, admin, "PATCH", "/v1/watch-policy", `{"stallMinutes":1}`, "If-Match", `"2"`).refused(t, 412, "precondition_failed")
	for body, pointer := range map[string]string{
		`{"stallMinutes":0}`: "/stallMinutes", `{"errorCount":1001}`: "/errorCount", `{"errorMinutes":null}`: "/errorMinutes", `{"modelMinutes":4}`: "/modelMinutes", `{"modelTurns":"x"}`: "/modelTurns",
		`{"modelLatencyPercent":100}`: "/modelLatencyPercent", `{"modelErrorPercent":101}`: "/modelErrorPercent", `{"reportedDays":0}`: "/reportedDays", `{"watchedAt":1}`: "/watchedAt",
	} {
		h.as(t, admin, "PATCH", "/v1/watch-policy", body).refused(t, 400, "invalid_request", pointer)
	}
	h.as(t, admin, "PATCH", "/v1/watch-policy", `{"metadata":{"x":{}}}`).refused(t, 422, "watch_policies_metadata_check", "/metadata")
	h.as(t, admin, "PATCH", "/v1/watch-policy", `{"stallMinutes":null,"errorCount":null,"modelMinutes":null,"reportedDays":null,"errorMinutes":7,"modelBaselineHours":1,"modelTurns":5,"modelErrorPercent":50,"modelLatencyPercent":200}`, "If-Match", `"1"`).wants(t, 200).into(t, &p)
	if p.StallMinutes != nil || p.ErrorCount != nil || p.ModelMinutes != nil || p.ReportedDays != nil || p.ErrorMinutes != 7 || p.ModelBaselineHours != 1 || p.ModelTurns != 5 || p.ModelErrorPercent != 50 || p.ModelLatencyPercent != 200 || p.Revision != 2 {
		t.Errorf("%+v", p)
	}
}

// What the watcher finds is read as what people report, and followed live.
func TestW21_TheWatcherReports(t *testing.T) {
	t.Parallel()
	h := newHub(t, live(t))
	h.sequence(t)
	s := h.newSessionIn(t, h.newProject(t, "p"))
	h.do(t, "PATCH", "/v1/sessions/"+s, `{"runState":"running"}`).wants(t, 200)
	h.exec(t, "SET session_replication_role = replica")
	h.exec(t, "UPDATE sessions SET updated_at = now() - interval '1 hour', last_activity_at = now() - interval '1 hour'")
	h.exec(t, "SET session_replication_role = DEFAULT")
	next, cut := follow(t, h.admin, h.url, "?kind=detection&sessionId="+s, "")
	defer cut()
	if e, ok := next(); !ok || e.name != "" {
		t.Fatalf("%+v", e)
	}
	if n := h.count(t, "SELECT watch_sessions(100)"); n != 1 {
		t.Fatalf("%d found", n)
	}
	e, ok := next()
	var event struct{ Kind, Action, ID, SessionID string }
	if err := json.Unmarshal([]byte(e.data), &event); err != nil || !ok || event.Kind != "detection" || event.Action != "created" || event.SessionID != s {
		t.Fatalf("%+v %v", e, err)
	}
	d := h.do(t, "GET", "/v1/detections/"+event.ID, nil).wants(t, 200).detection(t)
	if d.AnomalyType != "SESSION_STALL" || d.Origin != "watcher" || d.Status != "open" || d.SessionID != s {
		t.Errorf("%+v", d)
	}
}
