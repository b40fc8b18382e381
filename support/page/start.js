// The start: part 1 at once, the others when they come near the window.

for (const link of $$('a[href^="../"]')) link.href = linkTo(link.getAttribute("href").slice(3));

listenToFaces();
listenToClasses();
for (const input of $$('input[type="range"]')) {
  if (!input.nextElementSibling) input.after(document.createElement("output"));
}
// A slider says its own value: its output would say it again.
for (const output of $$("output")) output.ariaLive = "off";
listenToLesson();
listenToMorph();
listenToEraser();
openLink(location.hash.slice(1), true);
if (location.hash.length > 1) tellOfFirstPicture(); // a link may lead to another part
startLesson();
