package uimessages_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/alkdev/hub/internal/pgjson/jsonequal"
	"github.com/alkdev/hub/internal/uimessages"
)

// S08: every part type of opencode 1.18 has a stated mapping, or is left out.
func TestS08_EveryPartTypeIsShownOrLeftOut(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ kind, data, want string }{
		"text":                  {"text", `{"text":"a\u0000\ud83d","time":{"start":1,"end":2}}`, `[{"type":"text","text":"a\u0000\ud83d","state":"done"}]`},
		"text without a time":   {"text", `{"text":"a"}`, `[{"type":"text","text":"a","state":"done"}]`},
		"text that streams":     {"text", `{"text":"a","time":{"start":1}}`, `[{"type":"text","text":"a","state":"streaming"}]`},
		"text that is marked":   {"text", `{"text":"a","synthetic":true,"ignored":false}`, `[{"type":"text","text":"a","state":"done","providerMetadata":{"opencode":{"synthetic":true}}}]`},
		"text of a provider":    {"text", `{"text":"a","ignored":true,"metadata":{"openai":{"itemId":"x"},"n":1.50,"opencode":{"a":1}}}`, `[{"type":"text","text":"a","state":"done","providerMetadata":{"openai":{"itemId":"x"},"opencode":{"a":1,"n":1.50,"ignored":true}}}]`},
		"text that is none":     {"text", `{"text":5}`, `[{"type":"text","text":"","state":"done"}]`},
		"reasoning":             {"reasoning", `{"text":"a","time":{"start":1,"end":2},"metadata":{"anthropic":{"signature":"s"}}}`, `[{"type":"reasoning","text":"a","state":"done","providerMetadata":{"anthropic":{"signature":"s"}}}]`},
		"file":                  {"file", `{"mime":"image/png","url":"data:image/png;base64,AA==","filename":"a.png","source":{"type":"file"}}`, `[{"type":"file","mediaType":"image/png","url":"data:image/png;base64,AA==","filename":"a.png"}]`},
		"file without a name":   {"file", `{"mime":"text/plain","url":"file:///a","filename":null}`, `[{"type":"file","mediaType":"text/plain","url":"file:///a"}]`},
		"tool, pending":         {"tool", `{"tool":"bash","callID":"c","state":{"status":"pending","input":{},"raw":"{\"co"}}`, `[{"type":"dynamic-tool","toolName":"bash","toolCallId":"c","state":"input-streaming","input":{}}]`},
		"tool, running":         {"tool", `{"tool":"bash","callID":"c","state":{"status":"running","input":{"n":1e2},"title":"T","metadata":{"output":"x"},"time":{"start":1}}}`, `[{"type":"dynamic-tool","toolName":"bash","toolCallId":"c","title":"T","state":"input-available","input":{"n":1e2}}]`},
		"tool, completed":       {"tool", `{"tool":"bash","callID":"c","metadata":{"p":{"x":1}},"state":{"status":"completed","input":{"a":1},"output":"out","title":"T","metadata":{},"time":{"start":1,"end":2}}}`, `[{"type":"dynamic-tool","toolName":"bash","toolCallId":"c","title":"T","callProviderMetadata":{"p":{"x":1}},"state":"output-available","input":{"a":1},"output":"out"}]`},
		"tool with attachments": {"tool", `{"tool":"read","callID":"c","state":{"status":"completed","input":{},"output":"o","attachments":[{"type":"file","mime":"image/png","url":"data:x"},{"type":"file","mime":"a/b","url":"u","filename":"f"}]}}`, `[{"type":"dynamic-tool","toolName":"read","toolCallId":"c","state":"output-available","input":{},"output":"o"},{"type":"file","mediaType":"image/png","url":"data:x"},{"type":"file","mediaType":"a/b","url":"u","filename":"f"}]`},
		"tool, error":           {"tool", `{"tool":"bash","callID":"c","state":{"status":"error","input":{"a":1},"error":"no","time":{}}}`, `[{"type":"dynamic-tool","toolName":"bash","toolCallId":"c","state":"output-error","input":{"a":1},"errorText":"no"}]`},
		"tool without a state":  {"tool", `{}`, `[{"type":"dynamic-tool","toolName":"","toolCallId":"ID","state":"input-streaming","input":null}]`},
		"tool of another shape": {"tool", `{"tool":7,"state":{"status":"completed","attachments":{}}}`, `[{"type":"dynamic-tool","toolName":"","toolCallId":"ID","state":"output-available","input":null,"output":null}]`},
		"step-start":            {"step-start", `{"snapshot":"s"}`, `[{"type":"step-start"}]`},
		"step-finish":           {"step-finish", `{"reason":"stop","cost":1,"tokens":{}}`, `null`},
		"snapshot":              {"snapshot", `{"snapshot":"s"}`, `null`},
		"patch":                 {"patch", `{"hash":"h","files":["a"]}`, `[{"type":"data-patch","id":"ID","data":{"hash":"h","files":["a"]}}]`},
		"agent":                 {"agent", `{"name":"explore"}`, `[{"type":"data-agent","id":"ID","data":{"name":"explore"}}]`},
		"subtask":               {"subtask", `{"prompt":"p","description":"d","agent":"a"}`, `[{"type":"data-subtask","id":"ID","data":{"prompt":"p","description":"d","agent":"a"}}]`},
		"compaction":            {"compaction", `{"auto":true}`, `[{"type":"data-compaction","id":"ID","data":{"auto":true}}]`},
		"retry":                 {"retry", `{"attempt":1,"error":{}}`, `[{"type":"data-retry","id":"ID","data":{"attempt":1,"error":{}}}]`},
		"unknown":               {"x/y", `{"a":"\ud83d"}`, `[{"type":"data-x/y","id":"ID","data":{"a":"\ud83d"}}]`},
	} {
		got, err := json.Marshal(uimessages.Parts("ID", c.kind, json.RawMessage(c.data)))
		if err != nil {
			t.Fatal(err)
		}
		if d := jsonequal.Diff([]byte(c.want), got); d != nil {
			t.Errorf("%s: %v in %s", name, d, got)
		}
	}
	for _, kind := range uimessages.LeftOut {
		if got := uimessages.Parts("ID", kind, json.RawMessage("{}")); got != nil {
			t.Errorf("%s: %s", kind, got)
		}
	}
}

func TestMetadata(t *testing.T) {
	t.Parallel()
	for data, want := range map[string]string{
		`{}`: `{"createdAt":"T"}`,
		`{"providerID":"p","modelID":"m","agent":"a","cost":0.0,"tokens":{"input":1},"finish":"stop","error":{"name":"E"},"summary":{"diffs":[]},"path":{}}`: `{"createdAt":"T","providerId":"p","modelId":"m","agent":"a","cost":0.0,"tokens":{"input":1},"finish":"stop","error":{"name":"E"}}`,
		`{"model":{"providerID":"p","modelID":"m"},"agent":5}`: `{"createdAt":"T","providerId":"p","modelId":"m"}`,
	} {
		if d := jsonequal.Diff([]byte(want), uimessages.Metadata(json.RawMessage(data), "T")); d != nil {
			t.Errorf("%s: %v", data, d)
		}
	}
}

// What is shown never fails, whatever a client has stored.
func FuzzParts(f *testing.F) {
	f.Add("tool", `{"state":{"status":"completed","attachments":[5,null]}}`)
	f.Add("text", `{"metadata":[],"time":7}`)
	f.Fuzz(func(t *testing.T, kind, data string) {
		if !json.Valid([]byte(data)) || !strings.HasPrefix(data, "{") {
			return
		}
		for _, part := range uimessages.Parts("ID", kind, json.RawMessage(data)) {
			if !json.Valid(part) {
				t.Errorf("%s %s: %s", kind, data, part)
			}
		}
	})
}
