package policy

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
)

// A Reference is a place in a request that names another container. Get reads
// the name that stands there and Set puts the resolved ID in its stead.
type Reference struct {
	// Field is the place as users know it, for messages.
	Field string
	// Ref is the container as the caller called it.
	Ref string
	// Set rewrites the place to the full ID.
	Set func(id string)
}

// ContainerReferences lists every place of a create request that names another
// container, in a fixed order.
func ContainerReferences(req *container.CreateRequest) []Reference {
	hc := req.HostConfig
	if hc == nil {
		return nil
	}
	var refs []Reference
	mode := func(field, value string, set func(string)) {
		if ref, ok := strings.CutPrefix(value, "container:"); ok {
			refs = append(refs, Reference{field, ref, func(id string) { set("container:" + id) }})
		}
	}
	mode("--network", string(hc.NetworkMode), func(v string) { hc.NetworkMode = container.NetworkMode(v) })
	mode("--pid", string(hc.PidMode), func(v string) { hc.PidMode = container.PidMode(v) })
	mode("--ipc", string(hc.IpcMode), func(v string) { hc.IpcMode = container.IpcMode(v) })
	mode("Cgroup", string(hc.Cgroup), func(v string) { hc.Cgroup = container.CgroupSpec(v) })
	mode("--uts", string(hc.UTSMode), func(v string) { hc.UTSMode = container.UTSMode(v) })
	mode("--userns", string(hc.UsernsMode), func(v string) { hc.UsernsMode = container.UsernsMode(v) })
	mode("--cgroupns", string(hc.CgroupnsMode), func(v string) { hc.CgroupnsMode = container.CgroupnsMode(v) })
	for i, from := range hc.VolumesFrom {
		ref, rest, hasMode := strings.Cut(from, ":")
		refs = append(refs, Reference{"--volumes-from", ref, func(id string) {
			if hasMode {
				id += ":" + rest
			}
			hc.VolumesFrom[i] = id
		}})
	}
	for i, link := range hc.Links {
		ref, alias, hasAlias := strings.Cut(link, ":")
		refs = append(refs, Reference{"--link", ref, func(id string) {
			// The Engine uses the name as the alias where none is given.
			if !hasAlias {
				alias = ref
			}
			// The Engine reads /name:/parent/alias, the form that inspect shows,
			// only where the first part begins with a slash; an ID does not.
			alias = alias[strings.LastIndexByte(alias, '/')+1:]
			hc.Links[i] = id + ":" + alias
		}})
	}
	return refs
}

// StampContainer sets what is the proxy's to say on a container that is about
// to be created: owner and management labels, and the cgroup parent, in the form
// that the Engine's cgroup driver wants. Labels of the proxy's that are inherited from
// the image are made empty. It is the last thing that touches the
// request.
func StampContainer(req *container.CreateRequest, s *Subject, cgroupParent string, now time.Time, inherited map[string]string) {
	if req.Config == nil {
		req.Config = &container.Config{}
	}
	if req.HostConfig == nil {
		// Engines up to 26.1 read host settings from the top level when there
		// is no HostConfig.
		req.HostConfig = &container.HostConfig{}
	}
	labels := WithoutReserved(req.Config.Labels)
	labels[LabelContainerType] = ContainerType(labels)
	labels[LabelUser] = s.User
	labels[LabelManaged] = "true"
	labels[LabelCreatedAt] = now.Format(time.RFC3339)
	// A label that is absent here is inherited from the image.
	labels[LabelProtected] = "false"
	for _, key := range reserved {
		if _, set := labels[key]; !set && inherited[key] != "" {
			labels[key] = ""
		}
	}
	req.Config.Labels = labels
	req.HostConfig.CgroupParent = cgroupParent
}

// ContainerType says what made a container, by the labels its maker gave it.
func ContainerType(labels map[string]string) string {
	if v := labels[LabelInterface]; v != "" {
		return v
	}
	if devContainer(labels) {
		return "devcontainer"
	}
	for k := range labels {
		if strings.HasPrefix(k, "com.docker.compose") {
			return "compose"
		}
	}
	return "docker"
}

// labelDevMetadata is what dev container tools write of their settings: an array, of
// which the last value counts, or one object.
const labelDevMetadata = "devcontainer.metadata"

// RemoteUser is whom the tools of a dev container run everything in it as, whoever
// its first process is; "" where neither its maker nor its image says. The image's
// word counts for dev containers alone.
func RemoteUser(made, image map[string]string) string {
	text, said := made[labelDevMetadata]
	if !said {
		if !devContainer(made) {
			return ""
		}
		text = image[labelDevMetadata]
	}
	type settings struct {
		RemoteUser string `json:"remoteUser"`
	}
	var all []settings
	if json.Unmarshal([]byte(text), &all) != nil {
		all = make([]settings, 1)
		if json.Unmarshal([]byte(text), &all[0]) != nil {
			return ""
		}
	}
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].RemoteUser != "" {
			return all[i].RemoteUser
		}
	}
	return ""
}

// devContainer reports whether labels are those of a dev container's tools.
func devContainer(labels map[string]string) bool {
	for k := range labels {
		if strings.HasPrefix(k, "devcontainer.") {
			return true
		}
	}
	return false
}
