package api

import (
	"crypto/sha256"
	"net/http"
	"strings"
)

// bearer is the SHA-256 of the request's key (W13). A header that is missing or has another form fails as a wrong key does.
func bearer(header http.Header) ([]byte, error) {
	scheme, key, found := strings.Cut(header.Get("Authorization"), " ")
	if !found || !strings.EqualFold(scheme, "Bearer") || !strings.HasPrefix(key, "hub_") {
		return nil, errUnauthenticated
	}
	hash := sha256.Sum256([]byte(key))
	return hash[:], nil
}
