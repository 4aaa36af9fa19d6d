package proxy

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/docker/docker/api/types/container"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/quota"
)

// limits are the subject's, as they are now.
func (x *exchange) limits() policy.Limits { return x.srv.Limits.Of(x.subject.User, x.subject.Group) }

// host is what the rules about limits know of the machine.
func (x *exchange) host() (policy.Host, error) {
	st, err := x.srv.Owners.State(x.r.Context())
	if err != nil {
		return policy.Host{}, err
	}
	return st.Host(), nil
}

// reserve asks for a share of what the user has. It counts until the exchange is over
// or x.hold says otherwise.
func (x *exchange) reserve(ask quota.Ask) (policy.Verdict, error) {
	limits := x.limits()
	verdict := policy.Verdict{Outcome: policy.Allow, Rule: "quota"}
	// A container that is changed has its slice already.
	if !ask.Update {
		if err := x.srv.Slices.Ensure(x.r.Context(), x.subject, limits.Aggregate); err != nil {
			if verdict = policy.UnlimitedSlice(err, x.srv.Switches.CgroupErrors); !verdict.Allowed() {
				return verdict, nil
			}
		}
	}
	hold, v, err := x.srv.Quota.Reserve(x.r.Context(), x.subject, ask)
	if errors.Is(err, quota.ErrNotReady) {
		return v, &statusError{http.StatusServiceUnavailable, err.Error()}
	}
	if err != nil || !v.Allowed() {
		return v, err
	}
	verdict = x.opened(verdict, v)
	if hold.Warning != "" {
		x.warnings = append(x.warnings, hold.Warning)
	}
	// A promise ends with what the Engine says, not with the client's patience.
	x.hold, x.awaited = hold, !ask.Build
	x.atEnd(func() {
		if x.forwarded && x.rec.Status == 0 && !ask.Build {
			// The Engine may still do it: the promise stands until the book has heard of it.
			time.AfterFunc(afterHangUp, hold.Drop)
			return
		}
		hold.Drop()
	})
	return verdict, nil
}

// afterHangUp is how long a promise stands whose request was left by its client.
const afterHangUp = 30 * time.Second

// createGate gives a container its user's limits and holds it against them. A refusal
// comes before anything is made for it.
func (x *exchange) createGate(req *container.CreateRequest) (policy.Verdict, error) {
	config, err := x.srv.Catalog.ImageConfig(x.r.Context(), req.Image)
	if err != nil {
		return policy.Verdict{}, err
	}
	x.runs = config
	if v := policy.ExposedPorts(x.profile(), req, config.Exposed); !v.Allowed() {
		return v, nil
	}
	host, err := x.host()
	if err != nil {
		return policy.Verdict{}, err
	}
	limits := x.limits()
	one := limits.ForOne()
	if v := policy.ContainerCeilings(&one, host, req); !v.Allowed() {
		return v, nil
	}
	asked := policy.AskedGPUs(req, config.Env, host)
	asked = policy.GrantGPUs(req, asked, policy.MayHaveGPUs(x.profile(), &limits), host)
	v, err := x.reserve(quota.Ask{Memory: req.HostConfig.Memory, GPUs: asked, New: true})
	if err == nil && v.Allowed() && asked.Any() {
		x.granted, err = x.srv.GPUs.Grant(x.r.Context(), x.subject, asked, req)
	}
	x.holding = quota.Container{
		User: x.subject.User, Name: x.query.Get("name"), Memory: req.HostConfig.Memory, Fresh: true,
		Restarts: policy.Restarts(req.HostConfig.RestartPolicy), GPUs: asked,
	}
	return v, err
}

// startGate holds the start of a container against its user's limits.
func (x *exchange) startGate(obj policy.Object) (policy.Verdict, error) {
	if obj.Owner != x.subject.User {
		return policy.Pass(), nil
	}
	c, err := x.counted(obj.ID)
	if err != nil {
		return policy.Verdict{}, err
	}
	return x.reserve(quota.Ask{Container: obj.ID, Memory: c.Memory, GPUs: c.GPUs})
}

// unpauseContainer lets a container go on, unless its user is over the limit by now.
func unpauseContainer(x *exchange) (policy.Verdict, error) {
	obj, v, err := x.pathContainer(policy.Change)
	if err != nil || !v.Allowed() || obj.Owner != x.subject.User {
		return v, err
	}
	gate, err := x.reserve(quota.Ask{Container: obj.ID, Unpause: true})
	if err != nil || !gate.Allowed() {
		return gate, err
	}
	return x.opened(v, gate), nil
}

// startedContainer notes that a container runs.
func startedContainer(x *exchange) { x.hold.Started() }

// updateGate holds a change of a container against its user's limits.
func (x *exchange) updateGate(obj policy.Object, req *container.UpdateConfig) (policy.Verdict, error) {
	host, err := x.host()
	if err != nil {
		return policy.Verdict{}, err
	}
	limits := x.limits()
	one := limits.ForOne()
	if v := policy.UpdateCeilings(&one, host, req); !v.Allowed() || obj.Owner != x.subject.User {
		return v, nil
	}
	if _, err := x.counted(obj.ID); err != nil {
		return policy.Verdict{}, err
	}
	ask := quota.Ask{Container: obj.ID, Memory: req.Memory, Update: true}
	if req.RestartPolicy.Name != "" {
		restarts := policy.Restarts(req.RestartPolicy)
		ask.Restarts = &restarts
	}
	return x.reserve(ask)
}

// updatedContainer notes what a container holds from now on.
func updatedContainer(x *exchange) { x.hold.Updated() }

// counted is what a container holds, once that is known.
func (x *exchange) counted(id string) (quota.Container, error) {
	c, err := x.srv.Quota.Container(x.r.Context(), id)
	if errors.Is(err, quota.ErrNotReady) {
		err = &statusError{http.StatusServiceUnavailable, err.Error()}
	}
	return c, err
}

// buildGate gives the steps of a classic build their user's limits for one container,
// and holds them against those for all.
func (x *exchange) buildGate() (policy.Verdict, error) {
	host, err := x.host()
	if err != nil {
		return policy.Verdict{}, err
	}
	number := func(key string) int64 {
		x.one(key)
		n, err := strconv.ParseInt(x.query.Get(key), 10, 64)
		if err != nil {
			// The Engine takes what is no number for 0.
			return 0
		}
		return n
	}
	req := &container.CreateRequest{HostConfig: &container.HostConfig{ShmSize: number("shmsize"), Resources: container.Resources{
		Memory: number("memory"), MemorySwap: number("memswap"), CPUPeriod: number("cpuperiod"), CPUQuota: number("cpuquota"),
	}}}
	limits := x.limits()
	one := limits.ForOne()
	if v := policy.ContainerCeilings(&one, host, req); !v.Allowed() {
		return v, nil
	}
	hc := req.HostConfig
	if hc.NanoCPUs > 0 {
		hc.CPUPeriod, hc.CPUQuota = buildPeriod, hc.NanoCPUs*buildPeriod/1e9
	}
	for key, n := range map[string]int64{"shmsize": hc.ShmSize, "memory": hc.Memory, "memswap": hc.MemorySwap, "cpuperiod": hc.CPUPeriod, "cpuquota": hc.CPUQuota} {
		if x.query.Del(key); n != 0 {
			x.setQuery(key, strconv.FormatInt(n, 10))
		}
	}
	return x.reserve(quota.Ask{Memory: hc.Memory, Build: true})
}

// buildPeriod is the period of a build's CPU quota, in microseconds.
const buildPeriod = 100_000
