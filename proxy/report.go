package proxy

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/quota"
)

// A Report is the answer to GET /_ds01/limits: what a user takes of the machine, and may
// take. Memory is in bytes; limits that are null do not exist.
type Report struct {
	User       string  `json:"user"`
	Group      string  `json:"group"`
	Admin      bool    `json:"admin,omitempty"`
	Accounting string  `json:"accounting"`
	Memory     Memory  `json:"memory"`
	PIDs       Share   `json:"pids"`
	CPUs       Share   `json:"cpus"`
	GPUs       GPUs    `json:"gpus"`
	Containers Count   `json:"containers"`
	Each       PerOne  `json:"per_container"`
	Unread     string  `json:"unread,omitempty"`
	Refused    *Denial `json:"last_refusal,omitempty"`
}

// Memory is a user's: Used counts against Limit, Current is the kernel's own figure, and
// Cache the part of it that it would give back.
type Memory struct {
	Used      int64  `json:"used"`
	Current   int64  `json:"current"`
	Cache     int64  `json:"inactive_cache"`
	Pending   int64  `json:"pending"`
	Committed int64  `json:"committed"`
	Limit     *int64 `json:"limit"`
	High      *int64 `json:"high"`
}

// A Share is what there is of something, and may be; CPUs have a limit alone.
type Share struct {
	Used  *int64   `json:"used,omitempty"`
	Limit *float64 `json:"limit"`
}

// GPUs are those held, and by which containers.
type GPUs struct {
	Held    float64  `json:"held"`
	Holders []string `json:"holders"`
	Limit   *float64 `json:"limit"`
}

// Count is a number of containers.
type Count struct {
	All     int  `json:"all"`
	Running int  `json:"running"`
	Limit   *int `json:"limit"`
}

// PerOne are the limits of one container.
type PerOne struct {
	Memory     *int64   `json:"memory"`
	MemorySwap *int64   `json:"memory_swap"`
	ShmSize    *int64   `json:"shm_size"`
	CPUs       *float64 `json:"cpus"`
	PIDs       *int64   `json:"pids"`
	GPUs       *int     `json:"gpus"`
}

// A Denial is the last refusal by a quota.
type Denial struct {
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// ownLimits answers what the subject takes, and may take. Admins may ask about anybody.
func ownLimits(x *exchange) (policy.Verdict, error) {
	who := *x.subject
	if name := x.r.URL.Query().Get("user"); name != "" && name != who.User {
		if !who.Admin {
			return policy.AdminsOnly(x.subject, "asking for the limits of others"), nil
		}
		var err error
		if who, err = x.srv.Directory.ByName(name); err != nil {
			return policy.Verdict{}, &statusError{http.StatusNotFound, err.Error()}
		}
	}
	r, err := x.srv.Quota.Report(x.r.Context(), &who)
	if errors.Is(err, quota.ErrNotReady) {
		err = &statusError{http.StatusServiceUnavailable, err.Error()}
	}
	if err != nil {
		return policy.Verdict{}, err
	}
	s, l := r.Standing, r.Limits
	out := Report{
		User: who.User, Group: who.Group, Admin: who.Admin, Accounting: r.Accounting.String(), Unread: r.Unread,
		Memory:     Memory{Used: s.Used, Current: s.Current, Cache: s.Cache, Pending: s.Pending, Committed: s.Committed},
		PIDs:       Share{Used: &s.PIDs},
		GPUs:       GPUs{Held: s.GPUs, Holders: append([]string{}, s.Holders...)},
		Containers: Count{All: s.Containers, Running: s.Running, Limit: l.MaxContainers},
		Each: PerOne{
			Memory: l.PerContainer.Memory, MemorySwap: l.PerContainer.MemorySwap, ShmSize: l.PerContainer.ShmSize,
			CPUs: scaled(l.PerContainer.NanoCPUs, 1e9), PIDs: l.PerContainer.PIDs, GPUs: l.MaxGPUSlots,
		},
	}
	if a := l.Aggregate; a != nil {
		out.Memory.Limit, out.Memory.High, out.GPUs.Limit = a.MemoryMax, a.MemoryHigh, a.GPUs
		out.PIDs.Limit, out.CPUs.Limit = scaled(a.TasksMax, 1), scaled(a.CPUQuota, 100)
	}
	if r.Refused != "" {
		out.Refused = &Denial{r.Refused, r.When}
	}
	x.local, err = json.MarshalIndent(out, "", "  ")
	x.local = append(x.local, '\n')
	return policy.Verdict{Outcome: policy.Allow, Rule: "own-limits"}, err
}

// scaled is a limit in other units.
func scaled(n *int64, by float64) *float64 {
	if n == nil {
		return nil
	}
	f := float64(*n) / by
	return &f
}

// isOwn reports whether a request is for the proxy itself, whoever asks and however far
// the rules go for them.
func isOwn(r *http.Request) bool {
	_, path := splitVersion(r.URL.Path)
	return strings.HasPrefix(path, "/_ds01/")
}
