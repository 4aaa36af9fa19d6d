package policy

import (
	"math"
	"strings"
	"testing"
)

func TestAggregateValidate(t *testing.T) {
	n := func(v int64) *int64 { return &v }
	for _, c := range []struct {
		a    *Aggregate
		want []string
	}{
		{nil, nil},
		{&Aggregate{}, nil},
		{&Aggregate{CPUQuota: n(1), MemoryMax: n(1), MemoryHigh: n(1), TasksMax: n(1)}, nil},
		{&Aggregate{CPUQuota: n(maxCPUQuota), MemoryMax: n(math.MaxInt64)}, nil},
		{&Aggregate{CPUQuota: n(0)}, []string{"cpu quota of 0"}},
		{&Aggregate{CPUQuota: n(maxCPUQuota + 1)}, []string{"cpu quota of"}},
		{&Aggregate{MemoryMax: n(-1), TasksMax: n(0)}, []string{"memory max of -1", "tasks max of 0"}},
		{&Aggregate{MemoryHigh: n(0)}, []string{"memory high of 0"}},
	} {
		err := c.a.Validate()
		if (err == nil) != (c.want == nil) {
			t.Errorf("%+v: %v, want %q", c.a, err, c.want)
		}
		for _, w := range c.want {
			if err != nil && !strings.Contains(err.Error(), w) {
				t.Errorf("%+v: %v does not say %q", c.a, err, w)
			}
		}
	}
}
