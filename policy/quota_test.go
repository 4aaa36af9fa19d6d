package policy

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
)

// TestGateMemory: want is true where the request is let through.
func TestGateMemory(t *testing.T) {
	const most = math.MaxInt64
	for _, r := range []struct {
		accounting          Accounting
		limit               int64
		used, pending, comm int64
		requested           int64
		want                bool
	}{
		{AccountUsage, 10, 0, 0, 99, 10, true},
		{AccountUsage, 10, 0, 0, 0, 11, false},
		{AccountUsage, 10, 4, 3, 0, 3, true},
		{AccountUsage, 10, 4, 3, 0, 4, false},
		{AccountUsage, 10, 4, 5, 0, 0, true},
		{AccountUsage, 10, 5, 5, 0, 0, false},
		{AccountUsage, 10, 11, 0, 0, 0, false},
		{AccountUsage, most, most, 0, 0, 1, false},
		{AccountUsage, 10, most, most, 0, 1, false},
		{AccountUsage, 10, 1, most, 0, 1, false},
		{AccountUsage, most, most - 1, 0, 0, 1, true},
		{AccountUsage, 10, 0, 0, 0, most, false},
		{AccountCommitted, 10, 99, 99, 6, 4, true},
		{AccountCommitted, 10, 0, 0, 6, 5, false},
		{AccountCommitted, 10, 0, 0, 0, 0, false},
		{AccountCommitted, most, 0, 0, most, 1, false},
		{AccountCommitted, 10, 0, 0, 11, 1, false},
	} {
		g := Gate{Limits: &Limits{Aggregate: &Aggregate{MemoryMax: &r.limit}}, Accounting: r.accounting}
		v := g.Memory(Standing{Used: r.used, Pending: r.pending, Committed: r.comm}, r.requested)
		if v.Allowed() != r.want || v.Rule != "memory-quota" {
			t.Errorf("%+v: %+v", r, v)
		}
	}
	for _, l := range []*Limits{{}, {Aggregate: &Aggregate{}}} {
		for _, a := range []Accounting{AccountUsage, AccountCommitted} {
			if v := (Gate{Limits: l, Accounting: a}).Memory(Standing{Used: most, Committed: most}, 0); !v.Allowed() {
				t.Errorf("without a limit: %+v", v)
			}
		}
	}
	limit := int64(8)
	g := Gate{Limits: &Limits{Aggregate: &Aggregate{MemoryMax: &limit}}}
	if !g.Unpause(Standing{Used: 8}).Allowed() || g.Unpause(Standing{Used: 9}).Allowed() || !(Gate{Limits: &Limits{}}).Unpause(Standing{Used: 9}).Allowed() {
		t.Error("unpause is held against another limit")
	}
}

func TestGateContainers(t *testing.T) {
	for _, r := range []struct {
		running                             bool
		most, have, run, arriving, starting int
		want                                string
	}{
		{false, 3, 2, 0, 0, 9, ""},
		{false, 3, 3, 0, 0, 0, "you have 3 containers, and your limit is 3"},
		{false, 3, 1, 0, 2, 0, "you have 1 containers and 2 are being made"},
		{false, 0, 0, 0, 0, 0, "your limit is 0"},
		{true, 3, 9, 2, 0, 0, ""},
		{true, 3, 9, 3, 0, 0, "3 running containers"},
		{true, 3, 9, 1, 1, 1, "1 running containers and 2 are being made or started"},
	} {
		g := Gate{Limits: &Limits{MaxContainers: &r.most}, CountRunning: r.running}
		v := g.Containers(Standing{Containers: r.have, Running: r.run, Arriving: r.arriving, Starting: r.starting})
		if v.Allowed() != (r.want == "") || !strings.Contains(v.Reason, r.want) {
			t.Errorf("%+v: %+v", r, v)
		}
	}
	if v := (Gate{Limits: &Limits{}}).Containers(Standing{Containers: 1000}); !v.Allowed() {
		t.Error(v)
	}
}

func TestPIDsWarning(t *testing.T) {
	g := Gate{Limits: &Limits{Aggregate: &Aggregate{TasksMax: ptr(int64(1000))}}}
	for pids, want := range map[int64]bool{0: false, 899: false, 900: true, 1001: true} {
		if got := g.PIDsWarning(Standing{PIDs: pids}); (got != "") != want {
			t.Errorf("%d: %q", pids, got)
		}
	}
	if got := (Gate{Limits: &Limits{}}).PIDsWarning(Standing{PIDs: 1 << 30}); got != "" {
		t.Error(got)
	}
}

func TestRestarts(t *testing.T) {
	for name, want := range map[container.RestartPolicyMode]bool{"": false, "no": false, "always": true, "unless-stopped": true, "on-failure": true} {
		if Restarts(container.RestartPolicy{Name: name}) != want {
			t.Errorf("%q", name)
		}
	}
}

func TestUnreadable(t *testing.T) {
	err := errors.New("input/output error")
	for _, f := range []func(error, Switch) Verdict{UnreadableUsage, UnlimitedSlice} {
		if v := f(err, SwitchAllow); v.Outcome != FailOpen || !strings.Contains(v.Reason, "input/output") {
			t.Error(v)
		}
		if v := f(err, SwitchDeny); v.Allowed() || !strings.Contains(v.Reason, v.Rule) {
			t.Error(v)
		}
		if f(err, Switch(7)).Allowed() {
			t.Error("an unknown switch allows")
		}
	}
}
