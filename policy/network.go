package policy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
)

// NetworkRules are the limits of networks that users make.
type NetworkRules struct {
	// Pools are the address ranges that a network's subnets must lie in; with none,
	// only the Engine chooses subnets.
	Pools []netip.Prefix
	// MaxPerUser is how many networks a user may have; 0 means no limit.
	MaxPerUser int
}

// harmlessNetworkOptions are the bridge driver's options that touch nothing but
// the network itself; others name the host's interfaces and addresses.
var harmlessNetworkOptions = map[string]bool{
	"com.docker.network.driver.mtu":                  true,
	"com.docker.network.bridge.enable_icc":           true,
	"com.docker.network.bridge.enable_ip_masquerade": true,
	"com.docker.network.container_iface_prefix":      true,
}

// BuiltInNetwork reports whether a network is one that every Engine has and
// every user may use.
func BuiltInNetwork(name string) bool { return name == "bridge" || name == "host" || name == "none" }

// NewNetwork decides whether a user who has count networks may make another.
func NewNetwork(p *Profile, req *network.CreateRequest, rules NetworkRules, count int) Verdict {
	if rules.MaxPerUser > 0 && count >= rules.MaxPerUser {
		return refuseNamed("network-count", fmt.Sprintf("Permission denied: you have %d networks and the limit is %d. Remove some with docker network rm, or docker network prune.", count, rules.MaxPerUser))
	}
	if p.volumeOptions() {
		return allow("new-network")
	}
	switch {
	case req.Driver != "" && req.Driver != "bridge":
		return refuseNamed("network-driver", fmt.Sprintf("Permission denied: the network driver %q is not allowed here; use bridge.", req.Driver))
	case req.Scope != "" && req.Scope != "local", req.Ingress, req.ConfigOnly, req.ConfigFrom != nil:
		return refuseNamed("network-scope", "Permission denied: only local networks may be made here; swarm, ingress and config networks are for admins.")
	}
	for _, key := range sortedKeys(req.Options) {
		if !harmlessNetworkOptions[strings.ToLower(key)] {
			return refuseNamed("network-options", fmt.Sprintf("Permission denied: the network option %s is not allowed here, since it can touch the host's own interfaces. Leave it out.", key))
		}
	}
	if req.IPAM == nil {
		return allow("new-network")
	}
	if req.IPAM.Driver != "" && req.IPAM.Driver != "default" || len(req.IPAM.Options) > 0 {
		return refuseNamed("network-ipam", "Permission denied: only the default IPAM driver without options is allowed here.")
	}
	for _, c := range req.IPAM.Config {
		if c.Subnet == "" && c.IPRange == "" && c.Gateway == "" && len(c.AuxAddress) == 0 {
			continue
		}
		if v := inPools(c, rules.Pools); !v.Allowed() {
			return v
		}
	}
	return allow("new-network")
}

// inPools decides about one subnet: it could capture the host's routes.
func inPools(c network.IPAMConfig, pools []netip.Prefix) Verdict {
	subnet, err := netip.ParsePrefix(c.Subnet)
	if err != nil {
		return refuseNamed("network-subnet", fmt.Sprintf("Permission denied: %q is not a subnet in CIDR form.", c.Subnet))
	}
	names := make([]string, 0, len(pools))
	for _, pool := range pools {
		if pool.Bits() <= subnet.Bits() && pool.Contains(subnet.Addr()) {
			return allow("network-subnet")
		}
		names = append(names, pool.String())
	}
	if len(names) == 0 {
		return refuseNamed("network-subnet", fmt.Sprintf("Permission denied: the subnet %s cannot be chosen here. Leave it out; the Engine picks a free one.", c.Subnet))
	}
	return refuseNamed("network-subnet", fmt.Sprintf("Permission denied: the subnet %s is not inside %s. Choose one there, or leave it out.", c.Subnet, strings.Join(names, ", ")))
}

// NetworkReferences lists every place of a create request that names a network,
// in a fixed order. Places that hold what the Engine is to find out are cleared.
func NetworkReferences(req *container.CreateRequest) []Reference {
	var refs []Reference
	if hc := req.HostConfig; hc != nil {
		mode := hc.NetworkMode
		if name := string(mode); name != "" && name != network.NetworkDefault && !mode.IsContainer() && !BuiltInNetwork(name) {
			refs = append(refs, Reference{"--network", name, func(id string) { hc.NetworkMode = container.NetworkMode(id) }})
		}
	}
	nc := req.NetworkingConfig
	if nc == nil {
		return refs
	}
	for _, name := range sortedKeys(nc.EndpointsConfig) {
		ClearEndpoint(nc.EndpointsConfig[name])
		if BuiltInNetwork(name) || name == network.NetworkDefault {
			continue
		}
		refs = append(refs, Reference{"--network", name, func(id string) {
			endpoint := nc.EndpointsConfig[name]
			delete(nc.EndpointsConfig, name)
			nc.EndpointsConfig[id] = endpoint
		}})
	}
	return refs
}

// ClearEndpoint takes out of an endpoint's settings what the Engine finds out by
// itself; Engines use a NetworkID that stands there instead of the key.
func ClearEndpoint(e *network.EndpointSettings) {
	if e == nil {
		return
	}
	e.NetworkID, e.EndpointID, e.DNSNames = "", "", nil
}

// NetworkName returns the name that a network's owner knows it by.
func NetworkName(name string, labels map[string]string) string {
	if shown := labels[LabelNetworkName]; shown != "" {
		return shown
	}
	return name
}

// FreeNetworkName returns name, or where that is taken one that begins with it
// and is not.
func FreeNetworkName(name, user string, taken map[string]bool) string {
	if !taken[name] {
		return name
	}
	for n := 1; ; n++ {
		free := name + "." + user
		if n > 1 {
			free += "." + strconv.Itoa(n)
		}
		if !taken[free] {
			return free
		}
	}
}
