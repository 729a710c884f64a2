package api

import (
	"net/http"
	"strings"

	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/apikey"
)

// bearer is the hash of the request's key. A header that is missing or has another form fails as an unknown key does (S05).
func bearer(header http.Header) ([]byte, error) {
	scheme, key, _ := strings.Cut(header.Get("Authorization"), " ")
	hash, err := apikey.Hash(key)
	if err != nil || !strings.EqualFold(scheme, "Bearer") {
		return nil, refuse(db.Unauthenticated)
	}
	return hash, nil
}
