package audit

import (
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func newLog(t *testing.T) (*Log, *observer.ObservedLogs, *observer.ObservedLogs) {
	t.Helper()
	records, seen := observer.New(zapcore.InfoLevel)
	warnings, warned := observer.New(zapcore.InfoLevel)
	return New(zap.New(records), zap.New(warnings), prometheus.NewRegistry()), seen, warned
}

// TestFailOpenIsLoud wants the line, the record and the count, each naming the
// cause, whatever became of the request afterwards.
func TestFailOpenIsLoud(t *testing.T) {
	for _, verdict := range []string{VerdictFailOpen, VerdictError} {
		l, records, warnings := newLog(t)
		l.Record(&Record{User: "alice", Rule: "x", Verdict: verdict, Reason: "why", FailOpen: "unowned-container"})
		if n := testutil.ToFloat64(l.failOpens.WithLabelValues("unowned-container")); n != 1 {
			t.Errorf("%s: counted %v times", verdict, n)
		}
		if warnings.Len() != 1 || warnings.All()[0].ContextMap()["cause"] != "unowned-container" || warnings.All()[0].Level != zapcore.WarnLevel {
			t.Errorf("%s: warned %v", verdict, warnings.All())
		}
		if records.Len() != 1 || records.All()[0].ContextMap()["verdict"] != verdict {
			t.Errorf("%s: recorded %v", verdict, records.All())
		}
	}
	l, records, warnings := newLog(t)
	l.Record(&Record{Rule: "own-container", Verdict: VerdictAllow})
	if records.Len() != 1 || warnings.Len() != 0 {
		t.Errorf("an allowed request: %d records, %d warnings", records.Len(), warnings.Len())
	}
}

// TestRecordsAreBounded gives a record everything that a client can make long.
func TestRecordsAreBounded(t *testing.T) {
	l, records, warnings := newLog(t)
	long := strings.Repeat("x", 1<<20)
	r := &Record{Method: long, Reason: long, FailOpen: "cause"}
	for i := range 1000 {
		r.Objects = append(r.Objects, fmt.Sprintf("%064d", i))
	}
	l.Record(r)
	for _, entries := range [][]observer.LoggedEntry{records.All(), warnings.All()} {
		if size := len(fmt.Sprint(entries[0].ContextMap())); size > 4000 {
			t.Errorf("%s: %d bytes", entries[0].Message, size)
		}
	}
	if got := records.All()[0].ContextMap()["objects_total"]; got != int64(1000) {
		t.Errorf("the number of objects is %v", got)
	}
}

func TestPanicsAreCounted(t *testing.T) {
	l, _, warnings := newLog(t)
	l.Panic("/containers/{ref:.*}/json", "a bug", []byte("stack"))
	if testutil.ToFloat64(l.panics) != 1 || warnings.Len() != 1 || warnings.All()[0].ContextMap()["route"] != "/containers/{ref:.*}/json" {
		t.Errorf("%v", warnings.All())
	}
}

// TestEveryCauseIsTold lets one request through that two rules would have refused.
func TestEveryCauseIsTold(t *testing.T) {
	l, lines, told := newLog(t)
	l.Record(&Record{Verdict: VerdictFailOpen, Rule: "b", FailOpen: "b", Also: []Cause{{"a", "because"}}})
	if got := fmt.Sprint(lines.All()[0].ContextMap()["also"]); got != "[a: because]" {
		t.Errorf("also is %v", got)
	}
	if told.Len() != 2 {
		t.Errorf("%d warnings", told.Len())
	}
	for _, cause := range []string{"a", "b"} {
		if n := testutil.ToFloat64(l.failOpens.WithLabelValues(cause)); n != 1 {
			t.Errorf("%s is counted %v times", cause, n)
		}
	}
}
