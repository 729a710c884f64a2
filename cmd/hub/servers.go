package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
)

// servers are the addresses of one hub: requests go to one of them, until that cannot be had.
type servers struct {
	urls []*url.URL
	at   atomic.Int32
}

func newServers(addresses string) (*servers, error) {
	s := &servers{}
	for address := range strings.SplitSeq(addresses, ",") {
		parsed, err := url.Parse(strings.TrimSpace(address))
		if err != nil || parsed.Host == "" {
			return nil, fmt.Errorf("%q is no address such as http://127.0.0.1:8080", address)
		}
		s.urls = append(s.urls, parsed)
	}
	return s, nil
}

// RoundTrip implements http.RoundTripper. What a server never got goes to the next one at once; after an answer that got lost, or that
// says that the server is unavailable, the next request does.
func (s *servers) RoundTrip(r *http.Request) (*http.Response, error) {
	for tried := 1; ; tried++ {
		at := s.at.Load()
		sent := r.Clone(r.Context())
		sent.URL.Scheme, sent.URL.Host, sent.Host = s.urls[at].Scheme, s.urls[at].Host, s.urls[at].Host
		if tried > 1 && r.GetBody != nil {
			body, err := r.GetBody()
			if err != nil {
				return nil, err
			}
			sent.Body = body
		}
		response, err := http.DefaultTransport.RoundTrip(sent)
		if err == nil && response.StatusCode != http.StatusBadGateway && response.StatusCode != http.StatusServiceUnavailable || r.Context().Err() != nil {
			return response, err
		}
		s.at.CompareAndSwap(at, (at+1)%int32(len(s.urls)))
		var dial *net.OpError
		if !errors.As(err, &dial) || dial.Op != "dial" || tried >= len(s.urls) || r.Body != nil && r.GetBody == nil {
			return response, err
		}
	}
}
