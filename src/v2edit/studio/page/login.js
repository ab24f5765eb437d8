// Exchange the token, which stands behind the # of the address, for a cookie. No server sees that part of an address.
const form = document.getElementById("login");

async function logIn(token) {
  const answer = await fetch("/login", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ token }),
  });
  if (answer.ok) location.replace("/");
  else document.getElementById("problem").textContent = (await answer.json()).error;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  logIn(document.getElementById("token").value.trim());
});

if (location.hash.length > 1) {
  const token = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, "", "/login");
  logIn(token);
}
