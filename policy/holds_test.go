package policy

import (
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
)

// TestSmallestCPUs asks for so little that the Engine would set no quota at all.
func TestSmallestCPUs(t *testing.T) {
	most := int64(2e9)
	for nano, ok := range map[int64]bool{1: false, 9_999: false, 9_999_999: false, 10_000_000: true, 2_000_000_000: true} {
		limits := &ContainerLimits{NanoCPUs: &most}
		made := &container.CreateRequest{HostConfig: &container.HostConfig{Resources: container.Resources{NanoCPUs: nano}}}
		changed := &container.UpdateConfig{Resources: container.Resources{NanoCPUs: nano}}
		for _, v := range []Verdict{ContainerCeilings(limits, Host{CPUs: 4}, made), UpdateCeilings(limits, Host{CPUs: 4}, changed)} {
			if v.Allowed() != ok || !ok && !strings.Contains(v.Reason, "0.01 or more") {
				t.Errorf("%d: %+v", nano, v)
			}
		}
	}
}

func TestMayRestart(t *testing.T) {
	for _, c := range []struct {
		policy string
		ended  bool
		code   int
		want   bool
		failed string
	}{
		{"", false, 0, false, ""}, {"no", true, 1, false, ""}, {"unless-stopped", true, 127, true, "no such file"}, {"on-failure", true, 0, true, "x"},
		{"always", false, 0, true, ""}, {"always", true, 0, true, ""},
		{"unless-stopped", false, 0, true, ""}, {"unless-stopped", true, 137, false, ""},
		{"on-failure", false, 0, true, ""}, {"on-failure", true, 0, false, ""}, {"on-failure", true, 1, true, ""},
	} {
		if got := MayRestart(container.RestartPolicy{Name: container.RestartPolicyMode(c.policy)}, c.ended, c.code, c.failed); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
	}
}

// TestOneIsNotMoreThanAll bounds one container's CPUs by those of all.
func TestOneIsNotMoreThanAll(t *testing.T) {
	n := func(v int64) *int64 { return &v }
	for _, c := range []struct{ one, all, want *int64 }{
		{n(2e9), nil, n(2e9)}, {n(2e9), n(150), n(15e8)}, {n(1e9), n(150), n(1e9)}, {nil, n(150), nil},
	} {
		l := Limits{PerContainer: ContainerLimits{NanoCPUs: c.one}, Aggregate: &Aggregate{CPUQuota: c.all}}
		got := l.ForOne().NanoCPUs
		if (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
