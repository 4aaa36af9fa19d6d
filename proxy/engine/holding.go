package engine

import (
	"context"
	"time"

	"github.com/docker/docker/api/types/container"

	"github.com/ds01/ds01-proxy/policy"
)

// A Holding is what a container holds of the machine.
type Holding struct {
	ID   string
	Name string
	// Owner is whom its labels name.
	Owner string
	// Memory is its limit in bytes, 0 where it has none.
	Memory int64
	// Running is true for paused and restarting ones too, Fresh where it was never
	// started, and Restarts where its restart policy may start it.
	Running, Fresh, Restarts bool
	// Began is when it was started last.
	Began time.Time
	GPUs  policy.GPUAsk
	// Step is true where no label says that a request made it: the Engine did, for a
	// build.
	Step bool
	// CgroupParent tells whose it is where labels do not.
	CgroupParent string
}

// Holding asks what a container holds. Errors: ErrNotFound.
func (c *Client) Holding(ctx context.Context, id string, host policy.Host) (Holding, error) {
	var one struct {
		ID, Name   string
		Config     *container.Config
		HostConfig *container.HostConfig
		State      struct {
			Running, Paused, Restarting bool
			Status                      string
			ExitCode                    int
			Error                       string
			StartedAt                   time.Time
		}
	}
	ctx, cancel := context.WithTimeout(ctx, questionTimeout)
	defer cancel()
	if err := c.getJSON(ctx, "/containers/"+id+"/json", &one); err != nil {
		return Holding{}, err
	}
	h := Holding{ID: id, Name: ownName([]string{one.Name}), Began: one.State.StartedAt, Running: one.State.Running || one.State.Paused || one.State.Restarting, Fresh: one.State.Status == "created"}
	if hc := one.HostConfig; hc != nil {
		h.Memory, h.CgroupParent = hc.Memory, hc.CgroupParent
		h.Restarts = policy.MayRestart(hc.RestartPolicy, one.State.Status == "exited", one.State.ExitCode, one.State.Error)
	}
	if one.Config != nil {
		h.GPUs = policy.AskedGPUs(&container.CreateRequest{Config: one.Config, HostConfig: one.HostConfig}, nil, host)
		h.Owner = policy.OwnerOf(one.Config.Labels)
		h.Step = one.Config.Labels[policy.LabelManaged] == "" && h.Owner == ""
	}
	return h, nil
}
