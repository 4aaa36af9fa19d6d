package proxy

import (
	"crypto/rand"
	"net/http"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/volume"

	"github.com/ds01/ds01-proxy/policy"
)

func (x *exchange) pathVolume(use policy.Use) (policy.Verdict, error) {
	obj, err := x.srv.Resources.Volume(x.r.Context(), x.vars["ref"])
	if err != nil {
		return policy.Verdict{}, err
	}
	x.touch(obj.ID)
	return policy.AccessObject(x.subject, obj, use, x.switches().UnownedResources), nil
}

// readVolume shows one volume. Compose looks for a name before it makes a volume, so
// that a refusal says what to do.
func readVolume(x *exchange) (policy.Verdict, error) {
	v, err := x.pathVolume(policy.Read)
	if err == nil && !v.Allowed() {
		v = policy.TakenVolume(v, "")
	}
	return v, err
}

func removeVolume(x *exchange) (policy.Verdict, error) {
	if err := x.holdVolumes(removeVolumes, x.vars["ref"]); err != nil {
		return policy.Verdict{}, err
	}
	return x.pathVolume(policy.Change)
}

func pruneVolumes(x *exchange) (policy.Verdict, error) {
	if err := x.holdVolumes(removeVolumes); err != nil {
		return policy.Verdict{}, err
	}
	return filterOwn(x)
}

func createVolume(x *exchange) (policy.Verdict, error) {
	var req volume.CreateOptions
	if _, err := x.decode(&req); err != nil {
		return policy.Verdict{}, err
	}
	v := policy.NewVolume(x.profile(), &req)
	if !v.Allowed() {
		return v, nil
	}
	var names []string
	if req.Name != "" {
		names = []string{req.Name}
	}
	if err := x.holdVolumes(makeVolume, names...); err != nil {
		return policy.Verdict{}, err
	}
	req.Labels = policy.OwnLabels(req.Labels, x.subject)
	if policy.OwnedByEngine(&req) {
		x.mark = rand.Text()
		policy.MarkVolume(req.Labels, x.mark)
	}
	return v, x.encode(&req)
}

// answerVolume looks at the volume that comes back: where the name is taken, the
// Engine answers 201 with the volume that has it.
func answerVolume(x *exchange, _ *upstream, resp *http.Response) error {
	var v struct {
		Name   string
		Labels map[string]string
	}
	text, err := x.readAnswer(resp, &v)
	if err != nil {
		return err
	}
	obj := policy.Object{Kind: "volume", ID: v.Name, Ref: v.Name, Owner: policy.OwnerOf(v.Labels), Protected: policy.IsProtected(v.Labels)}
	verdict := policy.AccessObject(x.subject, obj, policy.Read, x.switches().UnownedResources)
	if !verdict.Allowed() {
		x.refuse(policy.TakenVolume(verdict, ""))
		return nil
	}
	if verdict.Outcome == policy.FailOpen {
		x.verdict = verdict
		x.decided()
	}
	if x.mark != "" && v.Labels[policy.LabelVolumeMark] == x.mark {
		x.madeVolume(v.Name)
	}
	return x.reply(resp, text)
}

// createVolumes checks the volumes that a container is to mount. Names are
// reserved with the owner's labels first, so that of two users who want one name
// at the same time one gets it and the other is told whose it is.
func (x *exchange) createVolumes(req *container.CreateRequest) (policy.Verdict, error) {
	verdict := policy.VolumeDrivers(x.profile(), req)
	if !verdict.Allowed() {
		return verdict, nil
	}
	refs := policy.VolumeReferences(req)
	if len(refs) > maxReferences {
		return policy.Verdict{}, badRequest("the request names %d volumes; %d is the most", len(refs), maxReferences)
	}
	names := make([]string, len(refs))
	for i, ref := range refs {
		names[i] = ref.Name
	}
	if err := x.holdVolumes(useVolumes, names...); err != nil {
		return policy.Verdict{}, err
	}
	for _, ref := range refs {
		labels := policy.MarkVolume(policy.OwnLabels(nil, x.subject), rand.Text())
		obj, made, err := x.srv.Resources.ReserveVolume(x.r.Context(), ref.Name, labels)
		if err != nil {
			return policy.Verdict{}, err
		}
		if made {
			x.madeVolume(obj.ID)
		}
		x.touch(obj.ID)
		v := policy.AccessObject(x.subject, obj, policy.Read, x.switches().UnownedResources)
		if !v.Allowed() {
			return policy.TakenVolume(v, ref.Field), nil
		}
		if v.Outcome == policy.FailOpen {
			verdict = v
		}
	}
	x.srv.volumes.of(x.subject.User).learnt(x.volumeHold)
	if req.HostConfig == nil {
		req.HostConfig = &container.HostConfig{}
	}
	var inherited []string
	for _, from := range req.HostConfig.VolumesFrom {
		// Resolved to an ID by now.
		id, _, _ := strings.Cut(from, ":")
		x.from = append(x.from, id)
		paths, err := x.srv.Processes.Destinations(x.r.Context(), id)
		if err != nil {
			return policy.Verdict{}, err
		}
		inherited = append(inherited, paths...)
	}
	policy.LabelVolumes(req, x.subject, x.runs.Volumes, inherited)
	return verdict, nil
}
