package api_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
)

type uiMessage struct {
	ID, Role string
	Metadata map[string]any
	Parts    []map[string]json.RawMessage
}

func (h *hub) uiMessages(t testing.TB, session string) (all []uiMessage) {
	t.Helper()
	for cursor := ""; ; {
		var page struct {
			Items      []uiMessage
			NextCursor string
		}
		h.do(t, "GET", "/v1/sessions/"+session+"/ui-messages?limit=7"+cursor, nil).wants(t, 200).into(t, &page)
		all = append(all, page.Items...)
		if page.NextCursor == "" {
			return all
		}
		cursor = "&cursor=" + page.NextCursor
	}
}

// What ai 7's validateUIMessages asks of each part: the members that must be there, by type and a tool's state. (It was run on these
// sessions itself; this keeps to it.)
var uiParts = map[string]string{
	"text": "text", "reasoning": "text", "file": "mediaType url", "step-start": "", "data-": "data",
	"dynamic-tool input-streaming": "toolName toolCallId", "dynamic-tool input-available": "toolName toolCallId input",
	"dynamic-tool output-available": "toolName toolCallId input output", "dynamic-tool output-error": "toolName toolCallId input errorText",
}

func TestS08_UIMessagesOfRealSessions(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	types := map[string]bool{}
	for name, file := range realExports(t) {
		var in imported
		h.importFile(t, h.admin, project, file).into(t, &in)
		messages := h.uiMessages(t, in.ID)
		if want := h.outline(t, in.ID); len(messages) != len(want) || len(messages) == 0 {
			t.Errorf("%s: %d messages of %d", name, len(messages), len(want))
		}
		for _, m := range messages {
			if m.ID == "" || !slices.Contains([]string{"user", "assistant", "system"}, m.Role) || m.Metadata["createdAt"] == nil || m.Role != "assistant" && len(m.Parts) == 0 {
				t.Errorf("%s: %+v", name, m)
			}
			if m.Role == "assistant" && (m.Metadata["modelId"] == nil || m.Metadata["cost"] == nil || m.Metadata["tokens"] == nil) {
				t.Errorf("%s: %+v", name, m.Metadata)
			}
			for _, p := range m.Parts {
				kind := strings.Trim(string(p["type"]), `"`)
				types[kind] = true
				switch {
				case strings.HasPrefix(kind, "data-"):
					kind = "data-"
				case kind == "dynamic-tool":
					kind += " " + strings.Trim(string(p["state"]), `"`)
				}
				needs, known := uiParts[kind]
				if !known {
					t.Errorf("%s: a part of type %s", name, kind)
				}
				for _, member := range strings.Fields(needs) {
					value, has := p[member]
					if !has || member != "input" && member != "output" && member != "data" && value[0] != '"' {
						t.Errorf("%s: %s has no %s: %s", name, kind, member, p)
					}
				}
				for _, never := range []string{"output", "errorText"} {
					if _, has := p[never]; has && !slices.Contains(strings.Fields(needs), never) {
						t.Errorf("%s: %s has %s", name, kind, never)
					}
				}
			}
		}
	}
	for _, kind := range []string{"text", "reasoning", "file", "dynamic-tool", "step-start", "data-patch", "data-agent", "data-subtask", "data-retry"} {
		if !types[kind] {
			t.Errorf("no %s among %v", kind, types)
		}
	}
	for _, kind := range []string{"data-step-finish", "data-snapshot"} {
		if types[kind] {
			t.Errorf("%s is shown", kind)
		}
	}
}

func TestGetUIMessages(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	session := h.newSession(t)
	if got := h.uiMessages(t, session); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	h.do(t, "POST", "/v1/sessions/"+session+"/messages", `{"messages":[{"role":"user"},{"role":"assistant"},{"role":"system","parts":[{"type":"snapshot","data":{"snapshot":"x"}}]},
		{"role":"user","parts":[{"type":"text","data":{"text":"a\u0000\ud83d"}}]}]}`).wants(t, 201)
	got := h.uiMessages(t, session)
	if len(got) != 4 || len(got[0].Parts) != 1 || string(got[0].Parts[0]["text"]) != `""` || len(got[1].Parts) != 0 || len(got[2].Parts) != 1 || string(got[3].Parts[0]["text"]) != `"a\u0000\ud83d"` {
		t.Errorf("%+v", got)
	}
	h.do(t, "GET", "/v1/sessions/"+uuid.NewString()+"/ui-messages", nil).refused(t, 404, "session_not_found")
	h.do(t, "GET", "/v1/sessions/"+session+"/ui-messages?cursor=x", nil).refused(t, 400, "invalid_cursor", "query:cursor")
}
