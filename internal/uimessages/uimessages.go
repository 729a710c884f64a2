// Package uimessages shows stored messages and parts as UIMessages of the AI SDK (npm's ai, version 7), which its user interfaces
// render and validateUIMessages accepts.
//
// Each part type of opencode has one mapping, or is left out on purpose:
//
//	text         text: ignored and synthetic ones too, marked in providerMetadata.opencode
//	reasoning    reasoning
//	file         file
//	tool         dynamic-tool: pending is input-streaming, running input-available, completed output-available, error
//	             output-error; a result's attachments follow as file parts
//	step-start   step-start
//	step-finish  left out: what a step has used is in the message's metadata
//	snapshot     left out: a git tree of the machine that the agent ran on
//	patch        data-patch
//	agent        data-agent
//	subtask      data-subtask
//	compaction   data-compaction
//	retry        data-retry
//	any other    data-<type>, as it is
package uimessages

import (
	"bytes"
	"encoding/json"
)

// LeftOut are the types that have no UIMessage part.
var LeftOut = []string{"step-finish", "snapshot"}

// object is a JSON object whose values are kept as they are spelled.
type object map[string]json.RawMessage

func parse(text json.RawMessage) object {
	var o object
	if json.Unmarshal(text, &o) != nil {
		return nil
	}
	return o
}

func literal(text string) json.RawMessage {
	quoted, _ := json.Marshal(text) // a string
	return quoted
}

func isString(value json.RawMessage) bool { return bytes.HasPrefix(value, []byte(`"`)) }
func isObject(value json.RawMessage) bool { return bytes.HasPrefix(value, []byte("{")) }

// text is a member that must be a string: empty where it is none.
func (o object) text(name string) json.RawMessage {
	if value := o[name]; isString(value) {
		return value
	}
	return literal("")
}

// any is a member that may be any value, null where it is missing.
func (o object) any(name string) json.RawMessage {
	if value, has := o[name]; has {
		return value
	}
	return json.RawMessage("null")
}

// copy sets a member of another object, if it is a string there.
func (o object) copy(name string, from object, field string) {
	if value := from[field]; isString(value) {
		o[name] = value
	}
}

func (o object) is(name, value string) bool { return string(o[name]) == value }

// Metadata is a message's metadata: what its data says of who wrote it, what it has used and how it ended.
func Metadata(data json.RawMessage, createdAt string) json.RawMessage {
	from, m := parse(data), object{"createdAt": literal(createdAt)}
	model := parse(from["model"])
	m.copy("agent", from, "agent")
	m.copy("providerId", model, "providerID")
	m.copy("modelId", model, "modelID")
	m.copy("providerId", from, "providerID")
	m.copy("modelId", from, "modelID")
	for _, name := range []string{"cost", "tokens", "finish", "error"} {
		if value, has := from[name]; has {
			m[name] = value
		}
	}
	return m.marshal()
}

func (o object) marshal() json.RawMessage {
	text, err := json.Marshal(o)
	if err != nil {
		panic(err) // its values were read as JSON
	}
	return text
}

// Parts shows one part: as one of the UIMessage's, or more, or none.
func Parts(id, kind string, data json.RawMessage) []json.RawMessage {
	from := parse(data)
	switch kind {
	case "text", "reasoning":
		part := object{"type": literal(kind), "text": from.text("text"), "state": literal("done")}
		if time := parse(from["time"]); time["start"] != nil && time["end"] == nil {
			part["state"] = literal("streaming")
		}
		part.providerMetadata("providerMetadata", from)
		return []json.RawMessage{part.marshal()}
	case "file":
		return []json.RawMessage{file(from)}
	case "tool":
		return tool(id, from)
	case "step-start":
		return []json.RawMessage{object{"type": literal(kind)}.marshal()}
	case "step-finish", "snapshot":
		return nil
	default:
		return []json.RawMessage{object{"type": literal("data-" + kind), "id": literal(id), "data": data}.marshal()}
	}
}

func file(from object) json.RawMessage {
	part := object{"type": literal("file"), "mediaType": from.text("mime"), "url": from.text("url")}
	part.copy("filename", from, "filename")
	part.providerMetadata("providerMetadata", from)
	return part.marshal()
}

func tool(id string, from object) []json.RawMessage {
	state := parse(from["state"])
	part := object{"type": literal("dynamic-tool"), "toolName": from.text("tool"), "toolCallId": from.text("callID"), "input": state.any("input")}
	if part.is("toolCallId", `""`) {
		part["toolCallId"] = literal(id)
	}
	part.copy("title", state, "title")
	part.providerMetadata("callProviderMetadata", from)
	parts := []json.RawMessage{nil}
	switch string(state["status"]) {
	case `"running"`:
		part["state"] = literal("input-available")
	case `"completed"`:
		part["state"], part["output"] = literal("output-available"), state.any("output")
		var attachments []json.RawMessage
		if json.Unmarshal(state["attachments"], &attachments) == nil {
			for _, attachment := range attachments {
				parts = append(parts, file(parse(attachment)))
			}
		}
	case `"error"`:
		part["state"], part["errorText"] = literal("output-error"), state.text("error")
	default:
		part["state"] = literal("input-streaming")
	}
	parts[0] = part.marshal()
	return parts
}

// providerMetadata takes over what a part's metadata says by provider, each an object. The rest, and the part's marks, are opencode's.
func (o object) providerMetadata(name string, from object) {
	all, own := object{}, object{}
	for provider, value := range parse(from["metadata"]) {
		if isObject(value) {
			all[provider] = value
		} else {
			own[provider] = value
		}
	}
	for _, mark := range []string{"synthetic", "ignored"} {
		if from.is(mark, "true") {
			own[mark] = from[mark]
		}
	}
	if len(own) > 0 {
		if given := parse(all["opencode"]); given != nil {
			for field, value := range own {
				given[field] = value
			}
			own = given
		}
		all["opencode"] = own.marshal()
	}
	if len(all) > 0 {
		o[name] = all.marshal()
	}
}
