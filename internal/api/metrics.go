package api

import (
	"context"
	"net"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"github.com/alkdev/hub/gen/api"
)

// metrics are what the hub counts. Whoever adds one registers it here.
type metrics struct {
	registry *prometheus.Registry

	clientsInvalid     prometheus.Gauge
	secretsWithoutKey  prometheus.Gauge
	secretsReencrypted *prometheus.CounterVec
	rotationSecrets    *prometheus.GaugeVec
	rotationRunning    prometheus.Gauge
}

func newMetrics() *metrics {
	m := &metrics{
		registry:           prometheus.NewRegistry(),
		clientsInvalid:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "hub_clients_invalid", Help: "Clients whose config did not meet their type's schema when this process started."}),
		secretsWithoutKey:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "hub_secrets_without_key", Help: "Secrets under keys that this process does not hold, when it started or last loaded its keys."}),
		secretsReencrypted: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hub_secrets_reencrypted_total", Help: "Secrets that this process has encrypted anew, by what caused it: sweep or reveal."}, []string{"by"}),
		rotationSecrets:    prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "hub_secret_rotation_secrets", Help: "Secrets of the latest rotation that this process has worked on: total, rotated (by all replicas), failed."}, []string{"state"}),
		rotationRunning:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "hub_secret_rotation_running", Help: "Whether a rotation of secrets is running, as this process last saw."}),
	}
	for _, by := range []string{"sweep", "reveal"} {
		m.secretsReencrypted.WithLabelValues(by)
	}
	m.registry.MustRegister(m.clientsInvalid, m.secretsWithoutKey, m.secretsReencrypted, m.rotationSecrets, m.rotationRunning)
	return m
}

// GetMetrics implements the contract's operation.
func (s *Server) GetMetrics(context.Context, api.GetMetricsRequestObject) (api.GetMetricsResponseObject, error) {
	return metricsResponse{s.metrics.registry}, nil
}

// metricsResponse states the format's version, which the generated response does not.
type metricsResponse struct{ gatherer prometheus.Gatherer }

func (m metricsResponse) VisitGetMetricsResponse(w http.ResponseWriter) error {
	families, err := m.gatherer.Gather()
	if err != nil {
		return err
	}
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	w.Header().Set("Content-Type", string(format))
	encoder := expfmt.NewEncoder(w, format)
	for _, family := range families {
		if err := encoder.Encode(family); err != nil {
			return err
		}
	}
	return nil
}

// fromThisMachine says whether a request came from loopback, and not through a proxy that runs there.
func fromThisMachine(r *http.Request) bool {
	for _, header := range []string{"Forwarded", "X-Forwarded-For", "X-Real-Ip", "Via"} {
		if r.Header.Get(header) != "" {
			return false
		}
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	return err == nil && net.ParseIP(host).IsLoopback()
}
