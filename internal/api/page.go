package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/alkdev/hub/gen/api"
)

// A cursor is opaque: the key of the last item, behind eight bytes that tell the list and its filters. The filters are those
// of the parameters that are neither limit nor cursor; a cursor that is used with others is refused, for it would skip items.

// pageSize is the limit asked for, or the contract's default.
func pageSize(limit *api.Limit) int32 {
	if limit == nil {
		return 50
	}
	return *limit
}

// after reads the key that the page starts behind; found is false on the first page.
func after[K any](cursor *api.Cursor, filters any) (key K, found bool, err error) {
	if cursor == nil {
		return key, false, nil
	}
	fault := refuse("invalid_cursor",
		api.FieldError{Pointer: "query:cursor", Message: "must be the nextCursor of the page before, with the same filters"})
	text, err := base64.RawURLEncoding.DecodeString(*cursor)
	if err != nil || len(text) < 8 || !bytes.Equal(text[:8], fingerprint(filters)) || json.Unmarshal(text[8:], &key) != nil {
		return key, false, fault
	}
	return key, true, nil
}

// before reads the id that a page of a list lies below whose newest come first; the first page lies below all ids.
func before(cursor *api.Cursor, filters any) (uuid.UUID, error) {
	id, found, err := after[uuid.UUID](cursor, filters)
	if !found {
		id = uuid.Max
	}
	return id, err
}

// next cuts the one item off that a query fetches beyond the page, and returns the cursor for what follows.
func next[T, K any](items []T, limit int32, filters any, key func(T) K) ([]T, *string) {
	if len(items) <= int(limit) {
		return items, nil
	}
	items = items[:limit]
	last, err := json.Marshal(key(items[limit-1]))
	if err != nil {
		panic(err) // keys are uuids and strings
	}
	cursor := base64.RawURLEncoding.EncodeToString(append(fingerprint(filters), last...))
	return items, &cursor
}

func fingerprint(filters any) []byte {
	text, err := json.Marshal(filters)
	if err != nil {
		panic(err) // parameters of the contract
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%T%s", filters, text))
	return sum[:8:8]
}

// ETags -------------------------------------------------------------------------------------------------------------

func etag(revision int32) string { return strconv.Quote(strconv.Itoa(int(revision))) }

var entityTag = regexp.MustCompile(`^(W/)?"[\x21\x23-\x7e\x80-\xff]*"$`)

// ifMatch is the revision that a resource must have; nil when any will do.
func ifMatch(header *api.IfMatch) (*int32, error) {
	if header == nil || strings.TrimSpace(*header) == "*" {
		return nil, nil
	}
	tag := strings.TrimSpace(*header)
	if !entityTag.MatchString(tag) {
		return nil, refuse("invalid_request", api.FieldError{Pointer: "header:If-Match", Message: `must be an ETag such as "3"`})
	}
	revision, err := strconv.ParseInt(strings.Trim(tag, `"`), 10, 32)
	if err != nil || etag(int32(revision)) != tag {
		return nil, refuse("precondition_failed") // an ETag, but never one of ours; a weak one matches nothing (RFC 9110, 13.1.1)
	}
	wanted := int32(revision)
	return &wanted, nil
}

// untouched tells why a conditional write found no row: the resource has another revision, or is not there.
func untouched(expected *int32, get func() error) error {
	if err := get(); err != nil {
		return err
	}
	if expected == nil {
		return refuse("try_again")
	}
	return refuse("precondition_failed")
}
