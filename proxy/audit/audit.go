// Package audit keeps one record per request and counts what must not go
// unnoticed.
package audit

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Verdicts of a record.
const (
	VerdictAllow     = "allow"
	VerdictDeny      = "deny"
	VerdictWouldDeny = "would_deny"
	VerdictFailOpen  = "fail_open"
	VerdictError     = "error"
)

// A Record is what is kept of one request: never a body, never a credential.
type Record struct {
	Began time.Time
	// User is the subject's name, "" where the caller was not identified.
	User  string
	Admin bool
	Mode  string
	// UID, PID and Container are the peer's; Container is "" outside containers.
	UID       uint32
	PID       int32
	Container string
	Method    string
	// Route is the template of the route table, or "" where none matched.
	Route string
	// Objects are the full IDs that the request was forwarded with.
	Objects []string
	Rule    string
	Verdict string
	Reason  string
	// FailOpen is the rule that would have refused, where a switch let the request
	// through, whatever became of it then.
	FailOpen string
	// Also are further causes of which any one would have been enough.
	Also []Cause
	// Status is the HTTP status that the caller got; 0 where the caller left.
	Status int
	// Took is from the end of the request's header to the end of the answer.
	Took time.Duration
}

// A Cause is a rule that would have refused a request, and why.
type Cause struct{ Rule, Reason string }

// A Log writes records and counts them.
type Log struct {
	records  *zap.Logger
	warnings *zap.Logger

	requests  *prometheus.CounterVec
	failOpens *prometheus.CounterVec
	panics    prometheus.Counter
}

// New returns a Log that writes records to records and what an admin must see
// to warnings, with its counters in reg.
func New(records, warnings *zap.Logger, reg prometheus.Registerer) *Log {
	l := &Log{
		records:  records,
		warnings: warnings,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ds01_proxy_requests_total",
			Help: "Requests answered, by route template, verdict and rule.",
		}, []string{"route", "verdict", "rule"}),
		failOpens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ds01_proxy_fail_open_total",
			Help: "Requests let through because a switch allows what the proxy cannot know, by cause.",
		}, []string{"cause"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ds01_proxy_panics_total",
			Help: "Requests that ended in a panic of the proxy.",
		}),
	}
	reg.MustRegister(l.requests, l.failOpens, l.panics)
	return l
}

// What a client can make a record long with is cut; lengths are in bytes.
const (
	maxReason  = 500
	maxMethod  = 32
	maxObjects = 16
)

func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}

// Record writes one record.
func (l *Log) Record(r *Record) {
	r.Reason, r.Method = cut(r.Reason, maxReason), cut(r.Method, maxMethod)
	l.requests.WithLabelValues(r.Route, r.Verdict, r.Rule).Inc()
	level := zapcore.InfoLevel
	if r.FailOpen != "" {
		l.failOpens.WithLabelValues(r.FailOpen).Inc()
		l.warnings.Warn("let through although no rule allows it",
			zap.String("cause", r.FailOpen), zap.String("user", r.User), zap.String("reason", r.Reason))
		level = zapcore.WarnLevel
	}
	var also []string
	for _, c := range r.Also {
		l.failOpens.WithLabelValues(c.Rule).Inc()
		l.warnings.Warn("let through although no rule allows it",
			zap.String("cause", c.Rule), zap.String("user", r.User), zap.String("reason", cut(c.Reason, maxReason)))
		also = append(also, c.Rule+": "+cut(c.Reason, maxReason))
	}
	objects := len(r.Objects)
	if objects > maxObjects {
		r.Objects = r.Objects[:maxObjects]
	}
	ce := l.records.Check(level, "request")
	if ce == nil {
		return
	}
	fields := []zap.Field{
		zap.String("user", r.User), zap.Bool("admin", r.Admin), zap.String("mode", r.Mode),
		zap.Uint32("uid", r.UID), zap.Int32("pid", r.PID), zap.String("peer_container", r.Container),
		zap.String("method", r.Method), zap.String("route", r.Route), zap.Strings("objects", r.Objects), zap.Int("objects_total", objects),
		zap.String("rule", r.Rule), zap.String("verdict", r.Verdict), zap.String("reason", r.Reason),
		zap.Int("status", r.Status), zap.Duration("took", r.Took),
	}
	if len(also) > 0 {
		fields = append(fields, zap.Strings("also", also))
	}
	ce.Write(fields...)
}

// Panic records a panic of the proxy with its stack.
func (l *Log) Panic(route string, value any, stack []byte) {
	l.panics.Inc()
	l.warnings.Error("panic while answering a request",
		zap.String("route", route), zap.Any("panic", value), zap.ByteString("stack", stack))
}
