package api

import (
	"net/http"
	"strings"

	"github.com/google/uuid"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/apikey"
)

// actingSession is the agent's session that the caller says it acts in, for the audit log; nil for none.
func actingSession(header http.Header) (*uuid.UUID, error) {
	text := header.Get("Hub-Session")
	if text == "" {
		return nil, nil
	}
	id, err := uuid.Parse(text)
	if err != nil || len(text) != 36 {
		return nil, refuse("invalid_request", api.FieldError{Pointer: "header:Hub-Session", Message: "must be the id of a session"})
	}
	return &id, nil
}

// bearer is the hash of the request's key. A header that is missing or has another form fails as an unknown key does (S05).
func bearer(header http.Header) ([]byte, error) {
	scheme, key, _ := strings.Cut(header.Get("Authorization"), " ")
	hash, err := apikey.Hash(key)
	if err != nil || !strings.EqualFold(scheme, "Bearer") {
		return nil, refuse(db.Unauthenticated)
	}
	return hash, nil
}
