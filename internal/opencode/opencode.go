// Package opencode reads and writes the session exports of opencode, observed on its version 1.18.33: one JSON object
//
//	{"info": {...}, "messages": [{"info": {...}, "parts": [{...}]}]}
//
// [Scan] checks a whole export and returns its outline, [Messages] then yields the messages one by one, and a [Writer] makes an
// export of stored rows. What came in goes out: unknown fields and part types anywhere, the spelling of numbers, NUL and lone
// surrogates survive. Reading takes memory for the largest message, for the unknown members beside info and messages, and for
// 16 bytes per id, to find the ones that occur twice.
//
// # Ids
//
// An imported row's id is a UUIDv7 (RFC 9562, section 5.7) that depends on the export alone:
//
//	unix_ts_ms  48 bits  the original time: info.time.created of the session or message; of a part, that of its message
//	rand_a      12 bits  the message's index among those of the same millisecond, in the order of the file (4095 at most);
//	                     of a part, that of its message; of a session, 0
//	rand_b      62 bits  of SHA-256 over the kind and the source's id; for a part 20 bits of its index in the message
//	                     (1,048,575 at most) and 42 bits of the hash
//
// So ids sort by time and then by the order of the file, parts within messages, and an export that is read again gives the same
// ids. They are unique within a tenant, not beyond: two tenants that import the same export get the same ids. A later export of
// the same session, from which messages were removed, may give another id to a message of the same millisecond as one of them.
package opencode

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/alkdev/hub/internal/pgjson"
)

// Error is a fault in an export: where it is and what it is.
type Error = pgjson.Error

const (
	// MaxIDLength bounds ids, part types and agent names, in bytes of UTF-8.
	MaxIDLength = 200
	// MaxTitleLength is where Session.Title ends, in characters.
	MaxTitleLength = 10_000
	// maxMillis is the end of the year 9999, the last that RFC 3339 can write. It fits the 48 bits of a UUIDv7.
	maxMillis = 253402300799999
	// maxExtra bounds the unknown members that one session or message keeps, in bytes.
	maxExtra = 128 << 20
)

// Session is the outline of an export.
type Session struct {
	ID             uuid.UUID
	SourceID       string
	ParentSourceID *string // may name a session that is nowhere
	// Title is the title for a text column: NUL and lone surrogates are U+FFFD, and it ends after MaxTitleLength characters. Data
	// has it as it was.
	Title string
	Agent *string
	// Agents are the distinct names of agents in info and in the messages' info, sorted.
	Agents           []string
	Created, Updated time.Time // in whole milliseconds, like all times here
	Archived         *time.Time
	// Data is info without id, parentID (unless that is null) and version.
	Data pgjson.Text
	// Metadata is {"_opencode": {"version": string, "extra": string}}: extra is the JSON text of an object with the members beside
	// info and messages, and absent when there are none.
	Metadata        pgjson.Text
	Messages, Parts int
}

// Message is one message of an export with its parts.
type Message struct {
	ID       uuid.UUID
	SourceID string
	Position int32  // in the file, from 0
	Role     string // user, assistant or system
	Created  time.Time
	// Data is info without id, sessionID and role.
	Data pgjson.Text
	// Metadata is {}, or {"_opencode": {"extra": string}} when there are members beside info and parts.
	Metadata pgjson.Text
	Parts    []Part
}

// Part is one part of a message.
type Part struct {
	ID       uuid.UUID
	SourceID string
	Position int32 // in the message, from 0
	Type     string
	// Data is the part without id, sessionID, messageID and type.
	Data pgjson.Text
	// Metadata is {}.
	Metadata pgjson.Text
}

// The kinds of ids that are hashed, so that a session and a message of the same source id differ.
const (
	kindSession = "opencode session\x00"
	kindMessage = "opencode message\x00"
	kindPart    = "opencode part\x00"
)

func sessionID(sourceID string, millis int64) uuid.UUID {
	return uuidV7(millis, 0, hash(kindSession, sourceID)>>2)
}

func messageID(sourceID string, millis int64, order int) uuid.UUID {
	return uuidV7(millis, order, hash(kindMessage, sourceID)>>2)
}

func partID(sourceID string, millis int64, order, index int) uuid.UUID {
	const indexBits, hashBits = 20, 42
	return uuidV7(millis, order, uint64(min(index, 1<<indexBits-1))<<hashBits|hash(kindPart, sourceID)>>(64-hashBits))
}

// uuidV7 lays out a UUIDv7. randB has 62 bits.
func uuidV7(millis int64, order int, randB uint64) (id uuid.UUID) {
	const version, variant = 7, 0b10
	randA := uint64(min(order, 1<<12-1))
	binary.BigEndian.PutUint64(id[:8], uint64(millis)<<16|version<<12|randA)
	binary.BigEndian.PutUint64(id[8:], variant<<62|randB)
	return id
}

func hash(kind, sourceID string) uint64 {
	sum := sha256.Sum256([]byte(kind + sourceID))
	return binary.BigEndian.Uint64(sum[:8])
}

// parseMillis returns the time that a JSON number means, in milliseconds since 1970; a fraction is dropped.
func parseMillis(number []byte) (millis int64, ok bool) {
	f, err := strconv.ParseFloat(string(number), 64)
	if err != nil || f < 0 || f >= maxMillis+1 {
		return 0, false
	}
	return int64(math.Floor(f)), true
}

// isText reports whether a string, given as a JSON literal, is no longer than MaxIDLength and clean: a text column gives it back
// as it is.
func isText(literal []byte) bool {
	for range pgjson.FindUnstorable(literal) { //nolint:errcheck // the faults are what is looked for
		return false
	}
	return len(pgjson.Clean(literal)) <= MaxIDLength
}

// columnTitle returns what Session.Title has of a title, given as a JSON literal.
func columnTitle(literal []byte) string {
	title := pgjson.Clean(literal)
	characters := 0
	for i := range title {
		if characters == MaxTitleLength {
			return title[:i]
		}
		characters++
	}
	return title
}

func isRole(role string) bool { return role == "user" || role == "assistant" || role == "system" }

// hubID spells the id of a row that was born in the hub as opencode spells ids.
func hubID(prefix string, id uuid.UUID) string {
	return prefix + strings.ReplaceAll(id.String(), "-", "")
}

// BornHere is the id of the hub's session or message that an export's id stands for: an export of the hub names what was born
// there so.
func BornHere(sourceID string) (id uuid.UUID, ok bool) {
	kind, hex, _ := strings.Cut(sourceID, "_")
	if kind != "ses" && kind != "msg" || len(hex) != 32 {
		return uuid.Nil, false
	}
	id, err := uuid.Parse(hex)
	return id, err == nil
}
