package proxy

import "net/http"

// A route is one row of the table: what the Engine registers, and what the
// proxy does with it.
type route struct {
	method string
	// path is the template below the version prefix. A reference is written
	// {ref:.*}, as the Engine does, which lets names reach over slashes.
	path string
	// guard decides, and rewrites what it decided on.
	guard guard
	// answer filters the Engine's 200; nil passes it on.
	answer answer
	// done is told of the Engine's success, before the client is.
	done func(x *exchange)
	// conflict words the Engine's 409 anew; nil passes it on.
	conflict answer
	body     bodyKind
	// tunnel is true where the Engine may take the connection over.
	tunnel bool
	// stamp rebuilds the body with nothing but the owner's marks in it, for a
	// mode that lets everything else through.
	stamp func(x *exchange) ([]byte, bool)
}

const (
	get  = http.MethodGet
	head = http.MethodHead
	post = http.MethodPost
	put  = http.MethodPut
	del  = http.MethodDelete

	// anyMethod matches every method that checkTarget lets through.
	anyMethod = ""
)

// unknown is the row of requests that no row matches.
var unknown = route{path: "", guard: unknownRoute, body: bodyStream}

// table is the security policy: every route of the Engine stands in it once, in
// the order in which they are tried. A test holds it against the Engine's own
// description and source.
func table() []route {
	return []route{
		// System. Anybody may ask; the answers name the pinned API version.
		{method: get, path: "/_ping", guard: open},
		{method: head, path: "/_ping", guard: open},
		{method: get, path: "/version", guard: open, answer: answerVersion},
		{method: get, path: "/info", guard: open, answer: answerInfo},
		{method: post, path: "/auth", guard: open, body: bodyChecked},

		// The proxy's own.
		{method: get, path: "/_ds01/limits", guard: ownLimits},
		{method: get, path: "/events", guard: open, answer: answerEvents},
		{method: get, path: "/system/df", guard: open, answer: answerDiskUsage},

		// Containers.
		{method: get, path: "/containers/json", guard: listContainers, answer: answerContainers},
		{method: post, path: "/containers/create", guard: createContainer, answer: answerCreated, conflict: conflictOfNames, body: bodyJSON, stamp: stampContainer},
		{method: post, path: "/containers/prune", guard: filterOwn},
		{method: get, path: "/containers/{ref:.*}/json", guard: readContainer, answer: answerContainer},
		{method: get, path: "/containers/{ref:.*}/top", guard: topContainer},
		{method: get, path: "/containers/{ref:.*}/logs", guard: readContainer},
		{method: get, path: "/containers/{ref:.*}/stats", guard: readContainer},
		{method: get, path: "/containers/{ref:.*}/changes", guard: readContainer},
		{method: get, path: "/containers/{ref:.*}/export", guard: readContainer},
		{method: get, path: "/containers/{ref:.*}/attach/ws", guard: changeContainer, tunnel: true},
		{method: head, path: "/containers/{ref:.*}/archive", guard: readArchive},
		{method: get, path: "/containers/{ref:.*}/archive", guard: readArchive},
		{method: put, path: "/containers/{ref:.*}/archive", guard: putArchive, body: bodyStream},
		{method: post, path: "/containers/{ref:.*}/wait", guard: readContainer},
		{method: post, path: "/containers/{ref:.*}/kill", guard: changeContainer},
		{method: post, path: "/containers/{ref:.*}/pause", guard: changeContainer},
		{method: post, path: "/containers/{ref:.*}/unpause", guard: unpauseContainer},
		{method: post, path: "/containers/{ref:.*}/stop", guard: changeContainer},
		{method: post, path: "/containers/{ref:.*}/start", guard: startContainer, done: startedContainer, body: bodyJSON},
		{method: post, path: "/containers/{ref:.*}/restart", guard: startContainer, done: startedContainer, body: bodyJSON},
		{method: post, path: "/containers/{ref:.*}/resize", guard: changeContainer},
		{method: post, path: "/containers/{ref:.*}/rename", guard: renameContainer, conflict: conflictOfNames},
		{method: post, path: "/containers/{ref:.*}/update", guard: updateContainer, done: updatedContainer, body: bodyJSON},
		{method: post, path: "/containers/{ref:.*}/attach", guard: changeContainer, tunnel: true},
		{method: post, path: "/containers/{ref:.*}/exec", guard: createExec, answer: answerExecCreated, body: bodyJSON},
		{method: post, path: "/containers/{ref:.*}/copy", guard: adminsOnly("POST /containers/…/copy")},
		{method: get, path: "/containers/{ref:.*}/checkpoints", guard: adminsOnly("docker checkpoint")},
		{method: post, path: "/containers/{ref:.*}/checkpoints", guard: adminsOnly("docker checkpoint")},
		{method: del, path: "/containers/{ref}/checkpoints/{checkpoint}", guard: adminsOnly("docker checkpoint")},
		{method: del, path: "/containers/{ref:.*}", guard: removeContainer},
		{method: anyMethod, path: "/containers/{ref}/{rest:.+}", guard: unknownBelowContainer, body: bodyStream},
		{method: anyMethod, path: "/containers/{ref}", guard: unknownBelowContainer, body: bodyStream},

		// Execs.
		{method: get, path: "/exec/{id:.*}/json", guard: readExec},
		{method: post, path: "/exec/{id:.*}/start", guard: startExec, body: bodyJSON, tunnel: true},
		{method: post, path: "/exec/{id:.*}/resize", guard: changeExec},
		{method: anyMethod, path: "/exec/{id}/{rest:.+}", guard: unknownBelowExec, body: bodyStream},

		// Images and builds.
		{method: post, path: "/commit", guard: commitContainer, answer: answerCommitted, body: bodyJSON},
		{method: post, path: "/build", guard: build, answer: answerBuilt, body: bodyStream},
		{method: post, path: "/build/prune", guard: pruneBuildCache},
		{method: post, path: "/build/cancel", guard: cancelBuild},
		{method: post, path: "/session", guard: buildKit, tunnel: true},
		{method: post, path: "/grpc", guard: buildKit, tunnel: true},
		{method: get, path: "/images/json", guard: listImages, answer: answerImages},
		{method: get, path: "/images/search", guard: open},
		{method: get, path: "/images/get", guard: saveImages},
		{method: get, path: "/images/{name:.*}/get", guard: saveImage},
		{method: get, path: "/images/{name:.*}/history", guard: readImage, answer: answerHistory},
		{method: get, path: "/images/{name:.*}/json", guard: readImage, answer: answerImage},
		{method: post, path: "/images/create", guard: createImage, answer: answerImported, body: bodyStream},
		{method: post, path: "/images/load", guard: loadImages, answer: answerLoaded, body: bodyStream},
		{method: post, path: "/images/prune", guard: pruneImages},
		{method: post, path: "/images/{name:.*}/push", guard: pushImage, body: bodyChecked},
		{method: post, path: "/images/{name:.*}/tag", guard: tagImage},
		{method: del, path: "/images/{name:.*}", guard: removeImage},
		{method: get, path: "/distribution/{name:.*}/json", guard: open},

		// Networks and volumes.
		{method: get, path: "/networks", guard: listNetworks, answer: answerNetworks},
		{method: get, path: "/networks/", guard: listNetworks, answer: answerNetworks},
		{method: get, path: "/networks/{ref:.+}", guard: readNetwork, answer: answerNetwork},
		{method: post, path: "/networks/create", guard: createNetwork, body: bodyJSON},
		{method: post, path: "/networks/prune", guard: filterOwn},
		{method: post, path: "/networks/{ref:.*}/connect", guard: connectNetwork, body: bodyJSON},
		{method: post, path: "/networks/{ref:.*}/disconnect", guard: disconnectNetwork, body: bodyJSON},
		{method: del, path: "/networks/{ref:.*}", guard: changeNetwork},
		{method: get, path: "/volumes", guard: filterOwn},
		{method: get, path: "/volumes/{ref:.*}", guard: readVolume},
		{method: post, path: "/volumes/create", guard: createVolume, answer: answerVolume, body: bodyJSON},
		{method: post, path: "/volumes/prune", guard: pruneVolumes},
		{method: put, path: "/volumes/{ref:.*}", guard: adminsOnly("docker volume update")},
		{method: del, path: "/volumes/{ref:.*}", guard: removeVolume},

		// Plugins run as root on the host.
		{method: get, path: "/plugins", guard: noPlugins},
		{method: get, path: "/plugins/privileges", guard: adminsOnly("docker plugin")},
		{method: get, path: "/plugins/{ref:.*}/json", guard: noPlugin},
		{method: post, path: "/plugins/pull", guard: adminsOnly("docker plugin")},
		{method: post, path: "/plugins/create", guard: adminsOnly("docker plugin")},
		{method: post, path: "/plugins/{ref:.*}/enable", guard: adminsOnly("docker plugin")},
		{method: post, path: "/plugins/{ref:.*}/disable", guard: adminsOnly("docker plugin")},
		{method: post, path: "/plugins/{ref:.*}/push", guard: adminsOnly("docker plugin")},
		{method: post, path: "/plugins/{ref:.*}/upgrade", guard: adminsOnly("docker plugin")},
		{method: post, path: "/plugins/{ref:.*}/set", guard: adminsOnly("docker plugin")},
		{method: del, path: "/plugins/{ref:.*}", guard: adminsOnly("docker plugin")},

		// Swarm schedules over every user's head.
		{method: get, path: "/swarm", guard: noSwarm},
		{method: post, path: "/swarm/init", guard: adminsOnly("docker swarm")},
		{method: post, path: "/swarm/join", guard: adminsOnly("docker swarm")},
		{method: post, path: "/swarm/leave", guard: adminsOnly("docker swarm")},
		{method: post, path: "/swarm/update", guard: adminsOnly("docker swarm")},
		{method: get, path: "/swarm/unlockkey", guard: adminsOnly("docker swarm")},
		{method: post, path: "/swarm/unlock", guard: adminsOnly("docker swarm")},
		{method: get, path: "/services", guard: adminsOnly("docker service")},
		{method: post, path: "/services/create", guard: adminsOnly("docker service")},
		{method: get, path: "/services/{id}", guard: adminsOnly("docker service")},
		{method: del, path: "/services/{id}", guard: adminsOnly("docker service")},
		{method: post, path: "/services/{id}/update", guard: adminsOnly("docker service")},
		{method: get, path: "/services/{id}/logs", guard: adminsOnly("docker service")},
		{method: get, path: "/nodes", guard: adminsOnly("docker node")},
		{method: get, path: "/nodes/{id}", guard: adminsOnly("docker node")},
		{method: del, path: "/nodes/{id}", guard: adminsOnly("docker node")},
		{method: post, path: "/nodes/{id}/update", guard: adminsOnly("docker node")},
		{method: get, path: "/tasks", guard: adminsOnly("docker service")},
		{method: get, path: "/tasks/{id}", guard: adminsOnly("docker service")},
		{method: get, path: "/tasks/{id}/logs", guard: adminsOnly("docker service")},
		{method: get, path: "/secrets", guard: adminsOnly("docker secret")},
		{method: post, path: "/secrets/create", guard: adminsOnly("docker secret")},
		{method: get, path: "/secrets/{id}", guard: adminsOnly("docker secret")},
		{method: del, path: "/secrets/{id}", guard: adminsOnly("docker secret")},
		{method: post, path: "/secrets/{id}/update", guard: adminsOnly("docker secret")},
		{method: get, path: "/configs", guard: adminsOnly("docker config")},
		{method: post, path: "/configs/create", guard: adminsOnly("docker config")},
		{method: get, path: "/configs/{id}", guard: adminsOnly("docker config")},
		{method: del, path: "/configs/{id}", guard: adminsOnly("docker config")},
		{method: post, path: "/configs/{id}/update", guard: adminsOnly("docker config")},

		// The Engine's own insides.
		{method: anyMethod, path: "/debug/{rest:.*}", guard: adminsOnly("/debug")},
	}
}
